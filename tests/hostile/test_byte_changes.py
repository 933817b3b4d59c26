"""Every byte of a set and its view counts: `verify` notices each change and each surplus (row 13).

python -m tests.hostile.test_byte_changes --count 2000
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from labeler.labeling.writing.finalize import finalize
from schemas import open_label_set
from schemas.manifest import read_manifest
from schemas.view import write_view
from tests.hostile.sealed import files_of, findings
from tests.schemas.sets import GOLDEN, view_of

SETS = ("plain-1", "compact-1", "states-1", "states-2")
VIEW = "some.view.json"
SURPLUS = (
    *("shards/part-000009.parquet", "shards/x", "tokenizer/added_tokens.json", "tokenizer/a/b"),
    *("index/page-000009.parquet", "journal/unit-000009.json", "hidden/x"),
    *("journal/unit-000009.rejects.parquet", "head/x"),
)


def make(folder: Path, codec: str) -> Path:
    """Copy a frozen set as this version finishes it, with a view of it; return its folder."""
    path = folder / "labels"
    shutil.copytree(GOLDEN.parent / f"format-1-{codec}", path)
    for name in ("expected.json", ".lock-0-of-1"):  # not part of the set
        (path / name).unlink(missing_ok=True)
    if (manifest := read_manifest(path)).plan is not None:
        finalize(path, manifest)
    view = view_of(open_label_set(path), lambda n, rows: np.full(rows, n % 2 == 0))
    write_view(folder / VIEW, view)
    return path


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def change_bytes(codec: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Change one byte at a time; return the changes by file, and those that went unnoticed.

    Where a file is JSON, another spelling of the same value is no change: one blank for another.
    """
    rng = random.Random(f"{codec}:{seed}")
    tried: Counter[str] = Counter()
    unnoticed = []
    with tempfile.TemporaryDirectory() as name:
        path = make(Path(name), codec)
        view = path.parent / VIEW
        files = [*files_of(path), view]
        for _ in range(count):
            file = rng.choice(files)
            data = file.read_bytes()
            at = rng.randrange(len(data))
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            tried[file.name] += 1
            found = findings(view if file == view else path)
            if not found and not same_json(data, bytes(changed)):
                unnoticed.append(f"{codec}, {file.name}, byte {at}")
            file.write_bytes(data)
    return tried, unnoticed


@pytest.mark.parametrize("codec", SETS)
def test_every_changed_byte_is_noticed(codec: str) -> None:
    tried, unnoticed = change_bytes(codec, 120, seed=0)
    assert not unnoticed
    assert len(tried) >= 14


@pytest.mark.parametrize("codec", SETS)
def test_every_file_is_missed_and_every_surplus_is_named(codec: str, tmp_path: Path) -> None:
    path = make(tmp_path, codec)
    assert findings(path) == []
    for file in list(files_of(path)):
        data = file.read_bytes()
        file.unlink()
        assert findings(path), file.name
        file.write_bytes(data)
    for name in SURPLUS:
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"surplus")
        assert any(name in found for found in findings(path)), name
        file.unlink()
    assert findings(path) == []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = []
    for codec in SETS:
        tried, unnoticed = change_bytes(codec, options.count // len(SETS), options.seed)
        print(codec, dict(tried))
        failed += unnoticed
    print(*failed, f"{options.count} changes, {len(failed)} unnoticed", sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
