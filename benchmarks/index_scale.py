"""S2: open a set of many units, and find a window of an epoch, its digests, a place to resume.

    python -m benchmarks.index_scale [--units 1000 10000 100000]

The set is the smallest frozen one of `tests/golden` with an index of made-up shards, 8 row groups
each: nothing here reads a label. Every size is a process of its own. Seconds are processor time;
`rss_mb` is how far opening, the order of an epoch and the digests raised the peak resident set.
`window_ms` is the mean over windows of finding their row groups in the order of an epoch, which is
computed once; `seek_ms` computes that order and finds the last window, as a resumed run does;
`digests_ms` is the first call, and later ones cost nothing; `old_digests_ms` is that of a set whose
manifest does not state the digest of its content. `lengths_s` reads the lengths of all rows, 32 per
row group, to count steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import schemas
from schemas.arrow import parquet_options
from schemas.file_names import shard_name
from schemas.fingerprint import sha256_file
from schemas.index import (
    FOOTER_ROW_GROUP,
    UNITS_PER_PAGE,
    WITH_LENGTHS,
    read_index,
    read_lengths,
)
from schemas.manifest import FileDigest, read_manifest, write_manifest
from schemas.version import FORMAT_VERSION
from trainer.data.mixture import Part, epoch_order
from trainer.data.order import Windows

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "format-1-plain-1"
ROW_GROUPS, ROWS, ROW_BYTES = 8, 32, 1 << 20
WINDOW, WINDOWS = 8, 500


def make_set(out: Path, units: int) -> None:
    """Write a complete set of `units` units, all but its shards."""
    shutil.copytree(GOLDEN, out)
    shutil.rmtree(out / "index")
    (out / "index").mkdir()
    random = np.random.default_rng(0)
    pages = []
    for first in range(0, units, UNITS_PER_PAGE):
        here = np.arange(first, min(first + UNITS_PER_PAGE, units))
        group = np.tile([*range(ROW_GROUPS), FOOTER_ROW_GROUP], len(here))
        start = np.tile(np.arange(ROW_GROUPS + 1) * ROW_BYTES, len(here))
        is_footer = group == FOOTER_ROW_GROUP
        hashes = random.bytes(32 * len(group)).hex()
        stops = np.cumsum(np.where(is_footer, 0, ROWS))
        lengths = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], stops]), pa.int32()),
            pa.array(random.integers(128, 1024, stops[-1]), pa.int32()),
            mask=pa.array(is_footer),
        ).cast(WITH_LENGTHS.field("lengths").type)
        columns = {
            "unit": np.repeat(here, ROW_GROUPS + 1),
            "shard": [shard_name(int(unit)) for unit in here for _ in range(ROW_GROUPS + 1)],
            "row_group": group,
            "start": start,
            "stop": start + np.where(is_footer, 4096, ROW_BYTES),
            "rows": np.where(is_footer, 0, ROWS),
            "labels": np.where(is_footer, 0, 16_384),
            "tokens": np.where(is_footer, 0, 16_384),
            "sha256": [hashes[at : at + 64] for at in range(0, len(hashes), 64)],
            "lengths": lengths,
        }
        name = f"index/page-{len(pages):06d}.parquet"
        table = pa.table(columns, schema=WITH_LENGTHS)
        pq.write_table(table, out / name, **parquet_options(WITH_LENGTHS, dictionary=["shard"]))
        pages.append(FileDigest(path=name, sha256=sha256_file(out / name)))
    changes = {
        "format_version": FORMAT_VERSION,
        "planned_units": units,
        "index_pages": tuple(pages),
        "content_digest": read_index(out, pages).digest,
        "totals": None,
    }
    write_manifest(out, read_manifest(GOLDEN).model_copy(update=changes))


def peak_mb() -> float:
    """Return the peak resident set of this process since it was reset, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: str) -> dict[str, float]:
    """Open a set and use its index; return the figures."""
    schemas.open_label_set(GOLDEN)  # imports are not counted
    # `ru_maxrss` would begin with what the parent process took.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb()

    begun = time.process_time()
    labels = schemas.open_label_set(folder)
    opened = time.process_time()
    windows = Windows(epoch_order((Part(labels=labels),), 0, 0), WINDOW)[:WINDOWS]
    ordered = time.process_time()
    for groups in windows:
        assert len([labels.row_groups[int(group)] for _, group in groups]) == WINDOW
    walked = time.process_time()
    assert len(labels.digests["content"]) == 64
    digested = time.process_time()
    last = Windows(epoch_order((Part(labels=labels),), 0, 1), WINDOW)[-1]
    assert labels.row_groups[int(last[0][1])].rows == ROWS
    sought = time.process_time()
    after = peak_mb()
    assert labels.row_groups.digest == labels.digests["content"]
    rehashed = time.process_time()
    assert len(read_lengths(labels.row_groups).values) == labels.rows
    counted = time.process_time()
    return {
        "open_s": round(opened - begun, 3),
        "rss_mb": round(after - before, 1),
        "window_ms": round((walked - ordered) / len(windows) * 1000, 3),
        "digests_ms": round((digested - walked) * 1000, 1),
        "seek_ms": round((sought - digested) * 1000, 1),
        "old_digests_ms": round((rehashed - sought) * 1000, 1),
        "lengths_s": round(counted - rehashed, 3),
    }


def main() -> None:
    """Measure each size in a process of its own and print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    found = {}
    print("units    open s   MB      window ms  digests ms  seek ms  old digests ms  lengths s")
    for units in arguments.units:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "set"
            make_set(made, units)
            command = [sys.executable, "-m", "benchmarks.index_scale", "--measure", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = found[str(units)] = json.loads(done.stdout)
        print(
            f"{units:<8} {figures['open_s']:<8} {figures['rss_mb']:<7} {figures['window_ms']:<10} "
            f"{figures['digests_ms']:<11} {figures['seek_ms']:<8} {figures['old_digests_ms']:<15} "
            f"{figures['lengths_s']}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
