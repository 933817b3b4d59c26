"""Mutate label sets and views at random, most of them sealed again, and read them in every way.

    python -m tests.hostile.fuzz_sets --count 10000 [--seed 0] [--processes 2]

A case may end in `SoftshardsError` or in findings. Anything else is printed with the number that
repeats it (`--only NUMBER`): an exception, a crash, more than 10 s, more than 256 MB.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from labeler.labelsets.repair.diagnosis import diagnose
from labeler.labelsets.repair.repair import describe_repair
from schemas import SoftshardsError, open_label_set, scan
from schemas.arrow import INDEX_SCHEMA
from schemas.fingerprint import sha256_bytes
from schemas.version import COMPACT_1, PLAIN_1
from schemas.view import write_view
from tests.hostile.sealed import (
    files_of,
    findings,
    read_json,
    refoot,
    reidentify,
    reseal,
    trained_on,
    write_index_page,
    write_json,
)
from tests.schemas.sets import GOLDEN, varied_table, view_of, write_set

SECONDS, MEGABYTES = 10, 256
CHUNK = 250
VIEW = "some.view.json"
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**53, 2**63, 10**40),
    *(10**5000, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "/", "../x", "../../../etc/passwd", "/etc/passwd", "labels", "a" * 5000, "\0"),
    *("http://127.0.0.1:9/x", "reference::http://127.0.0.1:9/x", "file:///etc", "~/x", "\u202e"),
    *("shards/part-000001.parquet", "manifest.json", "\x1b]52;c;eA==\x07", "[/x]", "0" * 64),
    *([], {}, [[]] * 9, {"a": {"b": []}}, [1, 2], "complete", "running", "compact/1", "1.0"),
)


KINDS = (
    *("bytes", "sealed bytes", "sealed shard", "sealed page", "manifest", "identity", "entry"),
    *("index", "facts", "order", "view", "view bytes", "ledger"),
)


def make_sets(folder: Path) -> None:
    """Write the sets that are mutated: both codecs made here, and the frozen ones with plans."""
    for name, codec in (("plain", PLAIN_1), ("compact", COMPACT_1)):
        tables = [[varied_table(8 * s + 4 * g, 3, longest=9) for g in range(2)] for s in range(2)]
        write_set(folder / name, tables, codec)
    for name in ("plain", "compact"):
        shutil.copytree(GOLDEN.parent / f"format-1-{name}-1", folder / f"golden-{name}")
    for name in ("plain", "compact", "golden-plain", "golden-compact"):
        labels = open_label_set(folder / name)
        view = view_of(labels, lambda n, rows: np.arange(rows) % 2 == n % 2)
        write_view(folder / f"{name}.{VIEW}", view)


def mutate_json(content: Any, rng: random.Random) -> Any:
    """Return a JSON value with one value in it, at any depth, replaced, removed or repeated."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(sorted(content))
        if rng.random() < 0.08:
            return {k: v for k, v in content.items() if k != key}
        return content | {key: mutate_json(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.9:
        at = rng.randrange(len(content))
        choice = rng.random()
        if choice < 0.1:
            return [*content[:at], *content[at + 1 :]]
        if choice < 0.2:
            return [*content, content[at]]
        return [*content[:at], mutate_json(content[at], rng), *content[at + 1 :]]
    if isinstance(content, int) and not isinstance(content, bool) and rng.random() < 0.4:
        return content + rng.choice([-1, 1, 2**16, -(2**31), 2**32])
    return rng.choice(VALUES)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some changed, cut, repeated or overwritten."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(changed))
        choice = rng.random()
        if choice < 0.6:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice < 0.75:
            changed[at] = rng.choice([0, 1, 127, 128, 255])
        elif choice < 0.85:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4])
        elif choice < 0.9 and len(changed) > 9:
            del changed[at : at + rng.randrange(1, 9)]
        elif choice < 0.95:
            changed[at:at] = changed[at : at + rng.randrange(1, 64)]
        else:
            changed = changed[: max(1, at)]
    return bytes(changed)


def mutate(path: Path, view: Path, rng: random.Random) -> str:
    """Change a set or its view; return what was changed."""
    shards = sorted((path / "shards").iterdir())
    kind = rng.choice(KINDS)
    if kind in ("bytes", "sealed bytes"):
        file = rng.choice(list(files_of(path)))
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        if kind == "sealed bytes" and file.name != "manifest.json":
            reseal(path)
        return f"{kind} of {file.name}"
    if kind == "sealed shard":
        shard = rng.choice(shards)
        data = shard.read_bytes()
        length = int.from_bytes(data[-8:-4], "little") + 8
        part = slice(len(data) - length, len(data)) if rng.random() < 0.6 else slice(0, -length)
        changed = mutate_bytes(data[part], rng)
        shard.write_bytes(data[: part.start] + changed + data[part.stop :])
        reseal(path)
    elif kind == "sealed page":
        page = path / "index" / "page-000000.parquet"
        changed = mutate_bytes(page.read_bytes(), rng)
        page.write_bytes(changed)
        content = read_json(path / "manifest.json")
        content["index_pages"][0]["sha256"] = sha256_bytes(changed)
        write_json(path / "manifest.json", content)
    elif kind == "manifest":
        reseal(path, manifest=lambda content: mutate_json(content, rng) or content)
    elif kind == "identity":
        name = rng.choice(["vocab_size", "k", "draws", "mode", "max_length", "sampling"])
        reidentify(path, **{name: rng.choice([*VALUES, 4, 300, 2**22, 10**6])})
    elif kind == "entry":
        file = rng.choice(sorted((path / "journal").glob("unit-*.json")))
        write_json(file, mutate_json(read_json(file), rng) or {})
    elif kind == "index":
        rows = pq.read_table(path / "index" / "page-000000.parquet").to_pylist()
        row = rng.choice(rows)
        name = rng.choice(sorted(row))
        fits = [v for v in VALUES if isinstance(v, type(row[name])) and v is not True]
        row[name] = rng.choice([v for v in fits if isinstance(v, str) or abs(v) < 2**31])
        write_index_page(path, rows, INDEX_SCHEMA)
        reseal(path)
    elif kind == "facts":
        refoot(rng.choice(shards), lambda facts: mutate_json(facts, rng) or {})
        reseal(path)
    elif kind == "order":

        def order(facts: dict[str, Any]) -> dict[str, Any]:
            raw = base64.b64decode(facts.get("topk_order", "") or "KLUv/QQAAQAAAAAA")
            return facts | {"topk_order": base64.b64encode(mutate_bytes(raw, rng)).decode()}

        refoot(rng.choice(shards), order)
        reseal(path)
    elif kind == "view":
        write_json(view, mutate_json(read_json(view), rng) or {})
    elif kind == "view bytes":
        view.write_bytes(mutate_bytes(view.read_bytes(), rng))
    else:
        file = path / "ledger.json"
        file.write_text(json.dumps(mutate_json(read_json(file), rng)))
    return kind


def use(path: Path) -> None:
    """Read a set or view as verify, the trainer, a scan and a repair do."""
    findings(path)
    trained_on(path)
    for read in (_scan, _repair):
        with contextlib.suppress(SoftshardsError):
            read(path)


def _scan(path: Path) -> None:
    scan(path).select("id", "n_labels", "topk_ids", "tail_logprob").collect()


def _repair(path: Path) -> None:
    if path.is_dir():
        describe_repair(diagnose(path, None), dry_run=True)


def run_case(number: int, seed: int, sets: Path, folder: Path) -> tuple[str, str | None]:
    """Run one case in a folder; return what was changed, and what went wrong."""
    rng = random.Random(f"{seed}:{number}")
    name = rng.choice(["plain", "compact", "golden-plain", "golden-compact"])
    path, view = folder / name, folder / f"{name}.{VIEW}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sets / name, path)
    shutil.copy(sets / view.name, view)
    kind, error = "?", None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    try:
        kind = mutate(path, view, rng)
    except Exception:  # the mutation itself failed: nothing to read
        return "not made", None
    try:
        use(view if kind.startswith("view") else path)
    except BaseException:  # a panic of a Rust library is not an Exception
        error = traceback.format_exc(limit=-6)
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if error is None and seconds > SECONDS:
        error = f"{seconds:.1f} s"
    if error is None and grown > MEGABYTES:
        error = f"{grown:.0f} MB"
    return f"{name}: {kind}", error


def _chunk(
    numbers: list[int], seed: int, sets: Path, report: Callable[[tuple[int, str, str | None]], None]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            report((number, "started", None))
            report((number, *run_case(number, seed, sets, Path(folder))))


def run(count: int, seed: int = 0, *, processes: int = 1, first: int = 0) -> list[str]:
    """Run cases in child processes; return the failures."""
    context = multiprocessing.get_context("fork")
    failures: list[str] = []
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        make_sets(Path(folder))
        chunks = [
            list(range(n, min(n + CHUNK, first + count)))
            for n in range(first, first + count, CHUNK)
        ]
        while chunks:
            started = []
            for numbers in [chunks.pop(0) for _ in range(min(processes, len(chunks)))]:
                receiver, sender = context.Pipe(duplex=False)
                arguments = (numbers, seed, Path(folder), sender.send)
                child = context.Process(target=_chunk, args=arguments)
                child.start()
                sender.close()
                started.append((child, receiver, numbers))
            for child, receiver, numbers in started:
                last = numbers[0]
                try:
                    while True:
                        if not receiver.poll(60):
                            failures.append(f"case {last}: hangs")
                            child.kill()
                            break
                        last, kind, error = receiver.recv()
                        kinds[kind.split(": ")[-1].split(" of ")[0]] += kind != "started"
                        if error is not None:
                            failures.append(f"case {last} ({kind}):\n{error}")
                except EOFError:
                    pass
                child.join()
                if child.exitcode and failures[-1:] != [f"case {last}: hangs"]:
                    failures.append(f"case {last}: the process died, {child.exitcode}")
                if child.exitcode and last < numbers[-1]:
                    chunks.append(list(range(last + 1, numbers[-1] + 1)))
    run.kinds = kinds  # type: ignore[attr-defined]
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    first, count = (0, options.count) if options.only is None else (options.only, 1)
    failures = run(count, options.seed, processes=options.processes, first=first)
    print(*failures, sep="\n")
    print(f"{count} cases, {len(failures)} failures; {dict(run.kinds)}")  # type: ignore[attr-defined]
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
