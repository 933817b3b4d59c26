"""Flipped bits and truncated files all over a label set: each is detected or provably harmless."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import (
    DecodedLabels,
    LabelSet,
    LabelSetError,
    decode,
    open_label_set,
    scan,
    validate_label_set,
)
from schemas.view import write_view
from tests.schemas.sets import view_of

SETS = Path(__file__).parents[1] / "golden"
GOLDEN = SETS / "format-1-plain-1"
CODECS = ("plain", "compact")
FILES = (
    *("shards/*", "index/*", "manifest.json", "plan.parquet", "tokenizer/*"),
    *("journal/unit-*.json", "journal/unit-*.rejects.parquet"),
)
READ_BY_TRAINER = ("shards", "index", "tokenizer")
"""Files of which a reader uses every byte. It never opens journal and plan."""
CHANGES = 40
VIEW = "some.view.json"


def read_all(labels: LabelSet) -> list[pa.Table]:
    return [labels.read_row_group(group) for group in labels.row_groups]


def as_trainer(path: Path) -> list[tuple[pa.Table, DecodedLabels]]:
    """Read a label set as the trainer does: open it, read every row group, decode the labels."""
    return [(table, decode(table)) for table in read_all(open_label_set(path))]


def as_verify(path: Path) -> list[str]:
    """Return the findings of `labeler verify`; a refusal to open is one."""
    try:
        return [str(finding) for finding in validate_label_set(open_label_set(path))]
    except LabelSetError as error:
        return [str(error)]


def tried(path: Path) -> tuple[list[pa.Table], str | None]:
    """Return (the trainer's tables, None), or ([], the refusal); raise all other errors."""
    try:
        return [table for table, _ in as_trainer(path)], None
    except LabelSetError as error:
        return [], str(error)


def altered(content: bytes, rng: random.Random, change: int) -> bytes:
    """Flip one bit or, every fourth time, truncate."""
    place = rng.randrange(len(content))
    if change % 4 == 0:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def copy_of(codec: str, tmp_path: Path) -> Path:
    labels = tmp_path / "labels"
    shutil.copytree(SETS / f"format-1-{codec}-1", labels)
    return labels


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pattern", FILES)
def test_altered_files_are_detected(pattern: str, codec: str, tmp_path: Path) -> None:
    """560 changes. Reader and `verify` each refuse them, unless a change is harmless.

    Harmless means equal rows for the reader, and equal JSON for `verify`: one blank became another.
    No change of a Parquet or tokenizer file is harmless to `verify`.
    """
    rng = random.Random(pattern + codec)
    labels = copy_of(codec, tmp_path)
    assert as_verify(labels) == []
    truth = [table for table, _ in as_trainer(labels)]
    for change in range(CHANGES):
        file = rng.choice(sorted(labels.glob(pattern)))
        original = file.read_bytes()
        changed = altered(original, rng, change)
        file.write_bytes(changed)
        where = f"{file.name}, change {change}"
        tables, message = tried(labels)
        if message is None:
            assert all(a.equals(b) for a, b in zip(tables, truth, strict=True)), where
            assert not pattern.startswith(READ_BY_TRAINER), where
        else:
            assert "labels" in message, where  # the message names the file
        if not as_verify(labels):
            assert pattern in ("manifest.json", "journal/unit-*.json"), where
            assert same_json(changed, original), where
        file.write_bytes(original)
    assert as_verify(labels) == []


@pytest.mark.parametrize("codec", CODECS)
def test_altered_views_are_detected(codec: str, tmp_path: Path) -> None:
    """80 changes of a view's own file, and one of a shard that it selects from."""
    rng = random.Random(codec)
    labels = copy_of(codec, tmp_path)
    view = half_of(labels, tmp_path / VIEW)
    truth = [table for table, _ in as_trainer(view)]
    assert 0 < sum(table.num_rows for table in truth) < open_label_set(labels).rows
    assert as_verify(view) == []
    original = view.read_bytes()
    for change in range(CHANGES):
        changed = altered(original, rng, change)
        view.write_bytes(changed)
        tables, message = tried(view)
        if message is None:
            assert same_json(changed, original), change
            assert all(a.equals(b) for a, b in zip(tables, truth, strict=True)), change
        assert as_verify(view) or same_json(changed, original), change
    view.write_bytes(original)
    shard = labels / open_label_set(view).row_groups[0].shard
    shard.write_bytes(altered(shard.read_bytes(), rng, 1))
    assert tried(view)[1]
    assert as_verify(view)


def test_a_view_that_counts_wrongly_is_named(tmp_path: Path) -> None:
    """Its own digest is right; its counts of rows are not."""
    labels = copy_of("plain", tmp_path)
    view = half_of(labels, tmp_path / VIEW, more_labels=1)
    assert any("the view says" in problem for problem in as_verify(view))


def half_of(labels: Path, path: Path, *, more_labels: int = 0) -> Path:
    """Write a view of every other row group; in the golden sets, each has one row."""
    view = view_of(open_label_set(labels), lambda n, rows: np.full(rows, n % 2 == 0))
    kept = [k.model_copy(update={"labels": k.labels + more_labels}) for k in view.kept]
    view = view.model_copy(update={"label_set": "labels", "kept": tuple(kept)})
    write_view(path, view)
    return path


def test_raw_polars_reads_an_altered_shard_silently_and_scan_does_not(tmp_path: Path) -> None:
    """Flips in the pages of one column: Polars returns wrong values; reader and scan never do."""
    labels = copy_of("plain", tmp_path)
    shard = labels / open_label_set(labels).shards[0]
    truth, whole = pl.read_parquet(shard), scan(labels).collect()
    original = shard.read_bytes()
    group = pq.read_metadata(shard).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    (chunk,) = (c for c in columns if c.path_in_schema.startswith("topk_logprobs"))
    pages = range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
    rng = random.Random(0)
    silent = 0
    for _ in range(40):
        content = bytearray(original)
        content[rng.choice(pages)] ^= 1 << rng.randrange(8)
        shard.write_bytes(content)
        assert tried(labels)[1]
        with contextlib.suppress(LabelSetError):  # or no reader uses the bit
            assert scan(labels).collect().equals(whole)
        try:
            read = pl.read_parquet(shard)
        except (pl.exceptions.PolarsError, OSError):
            continue
        silent += not read.equals(truth)
    assert silent > 0


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    shard = next(iter(sorted((labels / "shards").iterdir())))
    shard.unlink()
    with pytest.raises(LabelSetError, match=f"{shard.name}: the shard is missing"):
        read_all(open_label_set(labels))


def test_a_shard_of_another_set_is_refused() -> None:
    """The footer names its teacher, so even new hashes do not help."""
    labels = open_label_set(GOLDEN)
    other = labels.manifest.model_copy(update={"identity_digest": "0" * 64})
    with pytest.raises(LabelSetError, match="belongs to a different label set"):
        read_all(LabelSet(labels.path, other, labels.row_groups))


def test_an_altered_tokenizer_is_refused(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    file = labels / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("<eos>", "<EOS>"))
    with pytest.raises(LabelSetError, match="tokenizer file is altered"):
        open_label_set(labels)


def test_no_label_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match=r"manifest\.json is missing"):
        open_label_set(tmp_path)
