"""S1: from shard to training arrays on one core, against a raw table read and `datasets`.

    python -m benchmarks.reader [--full]

All paths begin with files in the page cache. `raw` is `pq.read_table` of the plain shard and stops
at an unchecked Arrow table; ours verify every byte and end with int32 ids and
float32 logprobs [n, k]. `datasets` rows are what `load_dataset("parquet")` gives: Python lists.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.teacher_labels import as_rows, exact_labels, first_k, identity
from labeler.labeling.writing.set_place import SetPlace
from labeler.labelsets.derive.derived_writer import FinishedUnit, write_derived
from labeler.labelsets.derive.recode import recode
from schemas import decode, open_label_set
from schemas.fingerprint import sha256_file, tokenizer_digest
from schemas.manifest import FileDigest
from schemas.version import COMPACT_1, PLAIN_1

K, GROUP_ROWS = 64, 16
COLUMNS = ["topk_ids", "topk_logprobs", "tail_logprob", "token_logprob"]


def label_sets(positions: int, repeat: int, folder: Path) -> tuple[int, dict[str, Path]]:
    """Write the same labels in both codecs, `repeat` times over to give the clock enough work."""
    exact, vocab_size = exact_labels(positions)
    table = as_rows(first_k(exact, K), vocab_size)
    groups = [table.slice(i, GROUP_ROWS) for i in range(0, table.num_rows, GROUP_ROWS)]
    (folder / "plain" / "tokenizer").mkdir(parents=True)
    file = folder / "plain" / "tokenizer" / "tokenizer.json"
    file.write_text("{}")
    facts = {"engine": "", "engine_version": "", "device": "", "engine_seconds": 0.0}
    unit = FinishedUnit(
        tables=lambda: groups * repeat, tail_source="exact", entropy_source="", provenance=facts
    )
    write_derived(
        SetPlace(folder / "plain"),
        [unit],
        identity=identity(vocab_size, K, tokenizer=tokenizer_digest(file.parent)),
        codec=PLAIN_1,
        derived={"how": "benchmark"},
        copy_tokenizer=lambda _: (
            FileDigest(path="tokenizer/tokenizer.json", sha256=sha256_file(file)),
        ),
        provenance={},
    )
    plain = open_label_set(folder / "plain")
    recode([plain], folder / "compact", codec=COMPACT_1, how="convert")
    return plain.labels, {name: folder / name for name in ("plain", "compact")}


def raw(path: Path) -> None:
    for shard in sorted((path / "shards").iterdir()):
        pq.read_table(shard, columns=COLUMNS, use_threads=False)


def ours(path: Path) -> None:
    labels = open_label_set(path)
    for group in labels.row_groups:
        decode(labels.read_row_group(group, COLUMNS))


def hugging_face(path: Path, rows: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    files = [str(shard) for shard in sorted((path / "shards").iterdir())]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=CACHE)
    for index in range(rows):
        row = loaded[index]
        assert len(row["topk_ids"]) == row["n_labels"]


CACHE = ""


def seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process, which other processes do not affect."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    global CACHE
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="32,768 positions instead of 8,192")
    full = parser.parse_args().full
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    repeats, some_rows = (31, 64) if full else (15, 16)
    took: dict[str, list[float]] = {"raw": [], "plain": [], "compact": []}
    with tempfile.TemporaryDirectory() as name:
        CACHE = str(Path(name) / "cache")
        n, paths = label_sets(32_768 if full else 8_192, 16, Path(name))
        for _ in range(repeats):  # interleaved, so that slow phases of the machine hit all
            took["raw"].append(seconds(lambda: raw(paths["plain"])))
            took["plain"].append(seconds(lambda: ours(paths["plain"])))
            took["compact"].append(seconds(lambda: ours(paths["compact"])))
        hugging_face(paths["plain"], 1)  # its one conversion to Arrow files is not counted
        slow = seconds(lambda: hugging_face(paths["plain"], some_rows))
        shard = next((paths["plain"] / "shards").iterdir())
        counts = pq.read_table(shard, columns=["n_labels"])["n_labels"].to_pylist()[:some_rows]
    rates = {path: n / statistics.median(values) for path, values in took.items()}
    rates["datasets"] = sum(counts) / slow
    for path, rate in rates.items():
        print(f"{path:8} {rate:12,.0f} labels a second, k = {K}, one core")
    result = {
        "plain": round(rates["plain"] / rates["raw"], 3),
        "compact": round(rates["compact"] / rates["raw"], 3),
        "vs_datasets": round(rates["plain"] / rates["datasets"], 1),
        "compact_vs_datasets": round(rates["compact"] / rates["datasets"], 1),
        "labels": n,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
