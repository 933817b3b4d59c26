"""`labeler export`: the rows of a label set in a file that another tool reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeler.console import err, human_bytes, out, progress
from labeler.labelsets.exchange.exchange_formats import FORMATS, Format
from labeler.labelsets.exchange.tensor_rows import axolotl_table, distillkit_table, rectangles
from labeler.labelsets.exchange.text_rows import completions, jsonl_lines
from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.arrow import ZSTD_LEVEL
from schemas.atomic import atomic_path, write_atomic
from schemas.fingerprint import sha256_file

SIDECAR = ".softshards.json"
"""Ends the name of the file beside an exported one."""
TABLES = {"distillkit": distillkit_table, "axolotl": axolotl_table}

Write = Callable[[pa.Table], None]

DRAWS = "ids drawn from the teacher"


def print_export(
    source: Path,
    target: Path,
    kind: str,
    *,
    limit: int | None,
    lossy: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Export, and say what was written and what was lost.

    Raises:
        SoftshardsError: as `export`.
    """
    facts = export(source, target, kind, limit=limit, lossy=lossy, replace=replace)
    if as_json:
        print(json.dumps(facts))
        return
    size = human_bytes(facts["file"]["bytes"])
    out.print(f"{target}: {facts['rows']} rows, {facts['labels']} labels, {size}", markup=False)
    out.print(f"alignment: {facts['alignment']}", markup=False)
    for lost in facts["loses"]:
        out.print(f"not in it: {lost}", markup=False)
    if facts["rows_left_out"]:
        out.print(f"{facts['rows_left_out']} rows without a label were left out")
    if facts["rows_of_other_ids"]:
        out.print(
            f"{facts['rows_of_other_ids']} of {facts['rows']} rows: tokenized again, their text "
            "gives other ids than the teacher saw"
        )
    out.print(f"facts of the label set: {target}{SIDECAR}", markup=False)


def export(
    source: Path, target: Path, kind: str, *, limit: int | None, lossy: bool, replace: bool
) -> dict[str, Any]:
    """Write rows of a label set or view as another tool's file, and the facts beside it.

    One row group of the set is held at a time. The file is there whole or not at all.

    Args:
        source: the set or view.
        target: the file; its suffix says whether it is compressed.
        kind: one of `FORMATS`.
        limit: rows to write at most.
        lossy: write rows although something is lost that is not lost of every row.
        replace: put the file in the place of one that is there.

    Returns:
        What the sidecar says.

    Raises:
        SoftshardsError: there is a file, its suffix is another format's, or a row would lose
            something and `lossy` is not set.
    """
    form = FORMATS[kind]
    if not target.name.endswith(form.suffixes):
        raise SoftshardsError(
            f"a file of format {kind} is a {' or '.join(form.suffixes)}",
            path=target,
            hint="give it such a name",
        )
    if target.exists() and not replace:
        raise SoftshardsError(
            "there is a file already", path=target, hint="--replace writes over it"
        )
    labels = open_label_set(source)
    text = completions(labels, lossy=lossy) if kind == "trl" else None
    rows, count = 0, 0
    with atomic_path(target) as tmp, _writer(kind, tmp, target, labels, text) as write:
        for table in _tables(labels, limit):
            if kind != "jsonl" and not lossy:
                _refuse_student_context(table, kind, source)
            write(table)
            rows, count = rows + table.num_rows, count + int(table["n_labels"].to_numpy().sum())
    facts = _facts(labels, target, kind, form) | {
        "rows": rows - (text.empty if text else 0),
        "labels": count,
        "rows_left_out": text.empty if text else 0,
        "rows_of_other_ids": text.other if text else 0,
    }
    write_atomic(target.with_name(target.name + SIDECAR), json.dumps(facts, indent=1) + "\n")
    return facts


def _tables(labels: LabelSet, limit: int | None) -> Iterator[pa.Table]:
    """Row groups with plain columns, up to `limit` rows in all."""
    left = labels.rows if limit is None else min(limit, labels.rows)
    if not left:
        raise SoftshardsError("there is no row to write", path=labels.path)
    with progress("rows") as bar:
        task = bar.add_task("exporting", total=left)
        for group in labels.row_groups:
            table = labels.read_row_group(group).slice(0, left)
            yield table
            bar.advance(task, table.num_rows)
            left -= table.num_rows
            if not left:
                return


def _refuse_student_context(table: pa.Table, kind: str, source: Path) -> None:
    there = table["student_input_ids"].is_valid()
    if there.to_numpy().any():
        raise SoftshardsError(
            f"the student is to see other tokens here than the teacher, and format {kind} has no "
            "place for them",
            path=source,
            row=table.filter(there)["id"][0].as_py(),
            hint="--format jsonl keeps them; --lossy writes what the teacher saw",
        )


@contextmanager
def _writer(kind: str, tmp: Path, target: Path, labels: LabelSet, text: Any) -> Iterator[Write]:
    if kind in TABLES:
        with _parquet(tmp, kind, labels.manifest.identity.k) as write:
            yield write
        return
    lines = text.lines if text else jsonl_lines
    with tmp.open("wb") as file, ExitStack() as packing:
        stream: Any = file
        if target.name.endswith(".zst"):
            packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
            stream = packing.enter_context(packer.stream_writer(file))

        def write(table: pa.Table) -> None:
            stream.write(lines(table))

        yield write


@contextmanager
def _parquet(tmp: Path, kind: str, k: int) -> Iterator[Write]:
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        for rows in rectangles(table, k):
            made = TABLES[kind](rows)
            if writer is None:
                writer = pq.ParquetWriter(
                    tmp, made.schema, compression="zstd", compression_level=ZSTD_LEVEL
                )
            writer.write_table(made)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _facts(labels: LabelSet, target: Path, kind: str, form: Format) -> dict[str, Any]:
    manifest = labels.manifest
    if manifest.provenance.get("teacher") is None:
        err.print("the label set does not name its teacher; its identity is in the sidecar")
    return {
        "softshards": __version__,
        "format": kind,
        "file": {
            "name": target.name,
            "bytes": target.stat().st_size,
            "sha256": sha256_file(target),
        },
        "alignment": form.alignment,
        "loses": [*form.loses, *([DRAWS] if manifest.identity.draws else [])],
        "teacher": manifest.provenance.get("teacher"),
        "identity_digest": manifest.identity_digest,
        "identity": manifest.identity.model_dump(mode="json"),
        "label_set": {
            "path": str(labels.path),
            "self_digest": manifest.self_digest,
            "content": labels.content_digest,
            "view": labels.view.made if labels.view else None,
        },
    }
