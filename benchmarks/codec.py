"""L3: bytes per label on disk and their cost in precision, by codec, for labels of a real teacher.

    python -m benchmarks.codec [--full] [--levels]

Counted are ids, logprobs and tail as they lie in the shard (compact/1 with its order of ids in the
footer), against what most scripts write: Parquet with list<list<int32>> and list<list<float32>>
columns, zstd. KL is of the engine's float32 distribution over top-k and tail against the decoded
one, both made to sum to one. `wide` has the same labels with ids spread over 151,936.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.teacher_labels import as_rows, exact_labels, first_k, identity, spread_over
from schemas import Labels, arrow, decode, to_plain
from schemas.compact import frequency_order
from schemas.shard import write_shard

COLUMNS = ("topk", "tail_logprob")
WIDE = 151_936
ROW_GROUP = 16_384


def write(path: Path, table: pa.Table, vocab_size: int, k: int, codec: str, group: int) -> None:
    rows = max(1, group // 1023)
    parts = [table.slice(start, rows) for start in range(0, table.num_rows, rows)]
    ids = table["topk_ids"].combine_chunks().flatten().flatten().to_numpy()
    write_shard(
        path,
        parts,
        identity=identity(vocab_size, k),
        unit=0,
        tail_source="exact",
        entropy_source="none",
        order=frequency_order(np.bincount(ids)) if codec == "compact" else None,
    )


def bytes_a_label(path: Path, labels: int) -> float:
    """Return the bytes of ids, log-probabilities and tail."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    own = sum(c.total_compressed_size for c in chunks if c.path_in_schema.startswith(COLUMNS))
    footer = json.loads((metadata.metadata or {}).get(arrow.FOOTER_KEY, b"{}"))
    return (own + len(footer.get("topk_order", ""))) / labels


def read(path: Path) -> Labels:
    with pq.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        return decode(pa.concat_tables(to_plain(file.read_row_group(i)) for i in groups)).labels


def precision(exact: Labels, stored: Labels) -> tuple[float, float]:
    """Return (mean KL, largest error of a log-probability), in nats."""
    by_exact, by_stored = (np.argsort(one.topk_ids, axis=1) for one in (exact, stored))
    x, y = (
        np.take_along_axis(one.topk_logprobs.astype(np.float64), order, 1)
        for one, order in ((exact, by_exact), (stored, by_stored))
    )
    p = np.concatenate([x, exact.tail_logprob[:, None]], axis=1)
    q = np.concatenate([y, stored.tail_logprob[:, None]], axis=1)
    p -= np.logaddexp.reduce(p, axis=1, keepdims=True)
    q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean()), float(np.abs(x - y).max())


def default_parquet(path: Path, exact: Labels) -> None:
    pq.write_table(
        pa.table(
            {
                "topk_ids": pa.array(list(exact.topk_ids), pa.list_(pa.int32())),
                "topk_logprobs": pa.array(list(exact.topk_logprobs), pa.list_(pa.float32())),
                "tail_logprob": pa.array(exact.tail_logprob),
            }
        ),
        path,
        compression="zstd",
    )


def measure(exact: Labels, vocab_size: int, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    k, path = exact.topk_ids.shape[1], folder / "shard.parquet"
    table = as_rows(exact, vocab_size)
    for codec in ("plain", "compact"):
        write(path, table, vocab_size, k, codec, ROW_GROUP)
        kl, error = precision(exact, read(path))
        size = bytes_a_label(path, len(exact))
        yield codec, {"bytes": round(size, 1), "kl": kl, "max_error": round(error, 4)}
    default_parquet(path, exact)
    yield "default", {"bytes": round(bytes_a_label(path, len(exact)), 1), "kl": 0, "max_error": 0}


def levels(exact: Labels, vocab_size: int, folder: Path, console: Console) -> None:
    """Print how zstd level and row group size trade bytes for time."""
    shown = Table("codec", "zstd", "row group", "B a label", "write k/s", "read k/s", box=None)
    table, k, path = as_rows(exact, vocab_size), exact.topk_ids.shape[1], folder / "shard.parquet"
    own = (arrow.ZSTD_LEVEL, arrow.COLUMN_LEVELS)
    nothing: dict[str, int] = {}
    one_level = [((level, nothing), ROW_GROUP) for level in (1, 3, 6, 9, 15)]
    groups = [(own, size) for size in (ROW_GROUP, 2_048, 4_096, 65_536)]
    for (level, columns), group in [*one_level, *groups]:
        for codec in ("plain", "compact"):
            with mock.patch.multiple(arrow, ZSTD_LEVEL=level, COLUMN_LEVELS=columns):
                start = time.perf_counter()
                write(path, table, vocab_size, k, codec, group)
                wrote = time.perf_counter() - start
            start = time.perf_counter()
            read(path)
            took = time.perf_counter() - start
            size = f"{bytes_a_label(path, len(exact)):.1f}"
            rates = (f"{len(exact) / seconds / 1000:.0f}" for seconds in (wrote, took))
            shown.add_row(codec, "own" if columns else str(level), str(group), size, *rates)
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="32,768 positions instead of 8,192")
    parser.add_argument(
        "--levels", action="store_true", help="also zstd levels and row group sizes"
    )
    arguments = parser.parse_args()
    console = Console()
    exact, vocab_size = exact_labels(32_768 if arguments.full else 8_192)
    result: dict[str, Any] = {}
    shown = Table("codec", "k", "vocabulary", "B a label", "KL", "largest error", box=None)
    with tempfile.TemporaryDirectory() as name:
        for k in (64, 128):
            labels = first_k(exact, k)
            for suffix, some, vocab in (
                ("", labels, vocab_size),
                ("_wide", spread_over(labels, WIDE), WIDE),
            ):
                for codec, facts in measure(some, vocab, Path(name)):
                    result.setdefault(codec + suffix, {})[str(k)] = facts
                    shown.add_row(
                        codec,
                        str(k),
                        f"{vocab:,}",
                        str(facts["bytes"]),
                        f"{facts['kl']:.1e}",
                        str(facts["max_error"]),
                    )
        console.print(shown)
        if arguments.levels:
            levels(first_k(exact, 64), vocab_size, Path(name), console)
    print(json.dumps(result | {"positions": len(exact)}))


if __name__ == "__main__":
    main()
