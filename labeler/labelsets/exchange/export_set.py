"""`labeler export`: write the rows of a label set to a file that another tool reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeler.console import err, human_bytes, out, progress
from labeler.labelsets.exchange.exchange_config import ExportConfig
from labeler.labelsets.exchange.exchange_formats import FORMATS
from labeler.labelsets.exchange.tensor_rows import axolotl_table, distillkit_table, rectangles
from labeler.labelsets.exchange.text_rows import Completions, jsonl_lines, open_completions
from schemas.arrow import ZSTD_LEVEL
from schemas.atomic import atomic_path, write_atomic
from schemas.errors import SoftshardsError
from schemas.fingerprint import sha256_file
from schemas.labelset import LabelSet, open_label_set
from schemas.object_store import list_names, put
from schemas.redact import redacted
from schemas.remote import Remote
from schemas.urls import is_url
from schemas.version import __version__

SIDECAR = ".softshards.json"
"""Suffix of the file with facts that is written beside an exported one."""
TABLES = {"distillkit": distillkit_table, "axolotl": axolotl_table}
DRAWS = "ids drawn from the teacher"
STATES = "hidden states of the teacher"
TAILS = "tails at further temperatures"
WEIGHTS = "weights of sampled labels"

Write = Callable[[pa.Table], None]


class FileFacts(TypedDict):
    """The exported file."""

    name: str
    bytes: int
    sha256: str


class _SetFacts(TypedDict):
    softshards: str
    format: str
    file: FileFacts
    alignment: str
    loses: list[str]
    teacher: str | None
    identity_digest: str
    identity: dict[str, object]
    label_set: dict[str, object]


class ExportFacts(_SetFacts):
    """The content of the sidecar, which `--json` prints, too."""

    rows: int
    labels: int
    rows_left_out: int
    rows_of_other_ids: int


def run_export(config: ExportConfig) -> int:
    """Export, and print what was written and what was lost.

    Raises:
        SoftshardsError: as `export`.
    """
    file = redacted(str(config.file))
    facts = export(
        config.labels,
        config.file,
        config.format,
        limit=config.limit,
        lossy=config.lossy,
        replace=config.replace,
    )
    if config.as_json:
        print(json.dumps(facts))
        return 0
    size = human_bytes(facts["file"]["bytes"])
    out.print(f"{file}: {facts['rows']} rows, {facts['labels']} labels, {size}")
    out.print(f"alignment: {facts['alignment']}")
    for lost in facts["loses"]:
        out.print(f"not included: {lost}")
    if facts["rows_left_out"]:
        out.print(f"{facts['rows_left_out']} rows without a label were left out")
    if facts["rows_of_other_ids"]:
        out.print(
            f"{facts['rows_of_other_ids']} of {facts['rows']} rows: their text, tokenized again, "
            "gives different ids than the teacher saw"
        )
    out.print(f"facts of the label set: {file}{SIDECAR}")
    return 0


def export(
    source: Path | str,
    file: Path | str,
    format: str,
    *,
    limit: int | None,
    lossy: bool,
    replace: bool,
) -> ExportFacts:
    """Write rows of a label set or view as another tool's file, and a sidecar with facts.

    One row group of the set is held at a time. The file appears complete or not at all.

    Args:
        source: the set or view, or the URL of one.
        file: the file to write, or its URL in an object store; its suffix decides whether it is
            compressed.
        format: one of `FORMATS`.
        limit: most rows to write.
        lossy: also write rows that lose more than every row does.
        replace: overwrite an existing file.

    Returns:
        The content of the sidecar.

    Raises:
        SoftshardsError: the file exists, its suffix belongs to another format, or a row would lose
            more than every row does and `lossy` is not set.
    """
    suffixes = FORMATS[format].suffixes
    if not str(file).endswith(suffixes):
        raise SoftshardsError(
            f"format {format} needs a file name that ends in {' or '.join(suffixes)}",
            path=file,
            hint="rename the file",
        )
    folder, _, name = str(file).rpartition("/")
    remote = Remote(folder) if is_url(file) else None
    exists = Path(file).exists() if remote is None else name in list_names(remote, name)
    if exists and not replace:
        raise SoftshardsError("the file exists already", path=file, hint="--replace overwrites it")
    if remote is None:
        return _export(source, Path(file), format, limit=limit, lossy=lossy)
    with tempfile.TemporaryDirectory(prefix="softshards-") as staging:
        facts = _export(source, Path(staging, name), format, limit=limit, lossy=lossy)
        for sent in (name, name + SIDECAR):
            put(remote, sent, Path(staging, sent))
    return facts


def _export(
    source: Path | str, file: Path, format: str, *, limit: int | None, lossy: bool
) -> ExportFacts:
    labels = open_label_set(source)
    completions = open_completions(labels, lossy=lossy) if format == "trl" else None
    rows, count = 0, 0
    with atomic_path(file) as tmp, _writer(format, tmp, file, labels, completions) as write:
        for table in _tables(labels, limit):
            if format != "jsonl" and not lossy:
                _refuse_student_context(table, format, source)
            write(table)
            rows, count = rows + table.num_rows, count + int(table["n_labels"].to_numpy().sum())
    unlabeled = completions.unlabeled if completions else 0
    facts: ExportFacts = {
        **_facts(labels, file, format),
        "rows": rows - unlabeled,
        "labels": count,
        "rows_left_out": unlabeled,
        "rows_of_other_ids": completions.changed if completions else 0,
    }
    write_atomic(file.with_name(file.name + SIDECAR), json.dumps(facts, indent=1) + "\n")
    return facts


def _tables(labels: LabelSet, limit: int | None) -> Iterator[pa.Table]:
    """Yield row groups with plain columns, up to `limit` rows in all."""
    left = labels.rows if limit is None else min(limit, labels.rows)
    if not left:
        raise SoftshardsError("there are no rows to write", path=labels.place)
    with progress("rows") as bar:
        task = bar.add_task("exporting", total=left)
        for group in labels.row_groups:
            table = labels.read_row_group(group).slice(0, left)
            yield table
            bar.advance(task, table.num_rows)
            left -= table.num_rows
            if not left:
                return


def _refuse_student_context(table: pa.Table, format: str, source: Path | str) -> None:
    has_context = table["student_input_ids"].is_valid()
    if has_context.to_numpy().any():
        raise SoftshardsError(
            "the student sees other tokens than the teacher here, and format "
            f"{format} has no place for them",
            path=source,
            row=table.filter(has_context)["id"][0].as_py(),
            hint="--format jsonl keeps them; --lossy writes what the teacher saw",
        )


@contextmanager
def _writer(
    format: str, tmp: Path, file: Path, labels: LabelSet, completions: Completions | None
) -> Iterator[Write]:
    """Open the temporary file `tmp` of `file`, and yield a function that writes a table."""
    if format in TABLES:
        with _parquet_writer(tmp, format, labels.manifest.identity.width) as write:
            yield write
        return
    to_lines = completions.lines if completions else jsonl_lines
    with tmp.open("wb") as plain, ExitStack() as stack:
        stream: BinaryIO = plain
        if file.name.endswith(".zst"):
            compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
            stream = stack.enter_context(compressor.stream_writer(plain))

        def write_lines(table: pa.Table) -> None:
            stream.write(to_lines(table))

        yield write_lines


@contextmanager
def _parquet_writer(tmp: Path, format: str, k: int) -> Iterator[Write]:
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        for rows in rectangles(table, k):
            converted = TABLES[format](rows)
            if writer is None:
                writer = pq.ParquetWriter(
                    tmp, converted.schema, compression="zstd", compression_level=ZSTD_LEVEL
                )
            writer.write_table(converted)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _facts(labels: LabelSet, file: Path, format: str) -> _SetFacts:
    manifest = labels.manifest
    if manifest.provenance.get("teacher") is None:
        err.print("the label set does not name its teacher; the sidecar holds its identity")
    return {
        "softshards": __version__,
        "format": format,
        "file": {
            "name": file.name,
            "bytes": file.stat().st_size,
            "sha256": sha256_file(file),
        },
        "alignment": FORMATS[format].alignment,
        "loses": [
            *FORMATS[format].loses,
            *([DRAWS] if manifest.identity.draws else []),
            *([STATES] if manifest.states is not None else []),
            *([TAILS] if manifest.identity.label_temperatures else []),
            *([WEIGHTS] if manifest.identity.has_weights else []),
        ],
        "teacher": manifest.provenance.get("teacher"),
        "identity_digest": manifest.identity_digest,
        "identity": manifest.identity.model_dump(mode="json"),
        "label_set": {
            "path": labels.place,
            "self_digest": manifest.self_digest,
            "content": labels.content_digest,
            "view": labels.view.made if labels.view else None,
        },
    }
