"""Alter label sets on purpose and seal them again: every hash is right, the content is wrong."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labeler.labeling.writing.finalize import finalize
from schemas import Labels, LabelSet, decode, encode, open_label_set
from schemas.compact import frequency_order
from schemas.fingerprint import TOKENIZER_FILES, sha256_file, tokenizer_digest
from schemas.journal import read_entries, write_entry
from schemas.manifest import FileDigest
from schemas.shard import write_shard
from schemas.version import COMPACT_1

Change = Callable[[dict[str, Any], Labels], Labels]
"""(the row's other columns, its labels) -> its new labels."""


def reseal(
    labels: LabelSet,
    rows: Callable[[pa.Table], pa.Table] = lambda table: table,
    *,
    tokenizer: Path | None = None,
    provenance: dict[str, Any] | None = None,
    **identity: Any,
) -> LabelSet:
    """Rewrite a set in place with other rows, tokenizer or identity, and new hashes."""
    out, manifest = labels.path, labels.manifest
    if tokenizer is not None:
        identity["tokenizer"] = tokenizer_digest(tokenizer)
        for name in TOKENIZER_FILES:
            (out / "tokenizer" / name).unlink(missing_ok=True)
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
    changed = manifest.identity.model_copy(update=identity)
    entries = read_entries(out, manifest.planned_units)
    tables: dict[str, list[pa.Table]] = {entry.shard: [] for entry in entries}
    for group in labels.row_groups:
        tables[group.shard].append(rows(labels.read_row_group(group)))
    for number, entry in enumerate(entries):
        some = [t.replace_schema_metadata(None) for t in tables[entry.shard]]
        ids = [t["topk_ids"].combine_chunks().flatten().flatten().to_numpy() for t in some]
        order = frequency_order(np.bincount(np.concatenate(ids)))
        groups, footer = write_shard(
            out / entry.shard,
            some,
            identity=changed,
            unit=entry.unit,
            tail_source="forged",
            entropy_source="forged",
            order=order if manifest.codec == COMPACT_1 else None,
        )
        entries[number] = entry.model_copy(update={"row_groups": groups, "footer": footer})
        write_entry(out, entries[number])
    files = sorted(path for path in (out / "tokenizer").iterdir() if path.name in TOKENIZER_FILES)
    resealed = manifest.model_copy(
        update={
            "identity": changed,
            "identity_digest": changed.digest,
            "provenance": manifest.provenance | (provenance or {}),
            "tokenizer_files": tuple(
                FileDigest(path=f"tokenizer/{f.name}", sha256=sha256_file(f)) for f in files
            ),
        }
    )
    finalize(out, resealed)
    return open_label_set(out)


def relabel(table: pa.Table, change: Change) -> pa.Table:
    """Change the labels of rows, and the scalars that follow from them."""
    decoded = decode(table)
    others = table.drop_columns(["topk_ids", "topk_logprobs"]).to_pylist()
    rows = [
        change(row, decoded.labels[slice(start, stop)])
        for row, (start, stop) in zip(others, pairwise(decoded.offsets), strict=True)
    ]
    size = (
        1 << 16
        if table.schema.field("topk_ids").type.value_type.value_type.bit_width == 16
        else 1 << 20
    )
    columns: dict[str, Any] = dict(encode(rows, size))
    columns["mean_nll"] = [float(-row.token_logprob.mean()) for row in rows]
    columns["coverage"] = [
        float(np.exp(row.topk_logprobs.astype(np.float64)).sum(axis=1).mean()) for row in rows
    ]
    for name, values in columns.items():
        field = table.schema.field(name)
        array = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        table = table.set_column(table.column_names.index(name), field, array.cast(field.type))
    return table


def shifted(by: int, *, only: Callable[[dict[str, Any]], Any] = lambda _: slice(None)) -> Change:
    """Move labels by `by` positions within their row, like a tool that is off by that many.

    `token_logprob` is taken from the moved distribution, so that no label contradicts itself.

    Args:
        by: positions to move.
        only: returns the labels of a row to replace; `[]` for none.
    """

    def change(row: dict[str, Any], labels: Labels) -> Labels:
        moved = rolled(by)(row, labels)
        tokens = [row["input_ids"][t] for s in row["spans"] for t in range(s["start"], s["stop"])]
        hit = moved.topk_ids == np.array(tokens)[:, None]
        least = np.minimum(moved.topk_logprobs[:, -1], moved.tail_logprob) - 1
        inside = np.where(hit, moved.topk_logprobs, 0).sum(axis=1)
        moved = dataclasses.replace(moved, token_logprob=np.where(hit.any(axis=1), inside, least))
        return spliced(labels, moved, only(row))

    return change


def rolled(by: int) -> Change:
    """Move all columns of labels by `by` positions, with token_logprob: the naive off-by-one."""
    return lambda _, labels: labels[np.roll(np.arange(len(labels)), by)]


def spliced(labels: Labels, other: Labels, where: Any) -> Labels:
    """Replace the labels at `where` with the ones of `other`."""
    taken = np.zeros(len(labels), bool)
    taken[where] = True
    arrays = {}
    for field in dataclasses.fields(Labels):
        ours, theirs = getattr(labels, field.name), getattr(other, field.name)
        if ours is not None:
            mask = taken[:, None] if ours.ndim == 2 else taken
            ours = np.where(mask, theirs, ours).astype(ours.dtype)
        arrays[field.name] = ours
    return Labels(**arrays)
