"""Labeled sequences to a shard, written completely or not at all, and its journal entry."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labeling.engines.engine import EngineFacts, Labeled
from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.planning.planned_row import PlannedRow, SpanFields
from schemas import PAD_ID, Identity, bucketed_entropy, encode
from schemas.compact import frequency_order
from schemas.file_names import hidden_name, shard_name
from schemas.hidden_part import HIDDEN_KEYS, hidden_table, write_hidden
from schemas.journal import UnitEntry, journal_unit
from schemas.manifest import StatesRecord
from schemas.shard import identity_schema, write_shard
from schemas.state_codec import StateBasis
from schemas.version import COMPACT_1, PLAIN_1


def write_unit(
    out: Path,
    unit: int,
    planned: list[PlannedRow],
    labeled: list[Labeled],
    rejects: list[Reject],
    *,
    texts: list[str | None],
    identity: Identity,
    facts: EngineFacts,
    row_group_labels: int,
    provenance: dict[str, object],
    codec: str = PLAIN_1,
    states: StatesRecord | None = None,
    bases: Mapping[str, StateBasis] | None = None,
) -> UnitEntry:
    """Write a unit's shard, its hidden states and its rejects, then journal it.

    Args:
        out: the label set's folder.
        unit: the unit's number.
        planned: its planned rows; `labeled` refers to them by index.
        labeled: what the engine returned, sorted by (index, sample).
        rejects: rows of the unit that could not be labeled.
        texts: the decoded generation of each labeled sequence, or None.
        identity: of the label set, for the shard's footer.
        facts: of the engine, for the footer.
        row_group_labels: labels per row group.
        provenance: further facts for the journal.
        codec: of the shard.
        states: the record of the set's hidden states, if `labeled` has any; bases: of each layer.

    Returns:
        The journal entry, already on disk.
    """
    schema = identity_schema(identity)
    stretches = list(_row_groups(labeled, row_group_labels))
    keys: list[pa.Table] = []

    def tables() -> Iterator[pa.Table]:
        for rows in stretches:
            table = _table(planned, labeled[rows], texts[rows], schema, identity.vocab_size)
            keys.append(table.select(HIDDEN_KEYS))
            yield table

    groups, footer = write_shard(
        out / shard_name(unit),
        tables(),
        identity=identity,
        unit=unit,
        tail_source=facts.tail_source,
        entropy_source=facts.entropy_source,
        order=_order(labeled) if codec == COMPACT_1 else None,
    )
    hidden = None
    if states is not None:
        parts = zip(keys, stretches, strict=True)
        hidden = write_hidden(
            out / hidden_name(unit),
            (hidden_table(k, _states(labeled[rows]), states, bases or {}) for k, rows in parts),
            states=states,
            identity_digest=identity.digest,
            unit=unit,
        )
    return journal_unit(
        out,
        unit,
        groups,
        footer,
        rejects=[vars(r) for r in rejects],
        provenance=provenance,
        hidden=hidden,
    )


def _states(rows: list[Labeled]) -> list[NDArray[np.floating]]:
    return [row.labels.states for row in rows if row.labels.states is not None]


def _order(labeled: list[Labeled]) -> NDArray[np.int32]:
    ids = [row.labels.topk_ids[row.labels.topk_ids != PAD_ID] for row in labeled]
    return frequency_order(np.bincount(np.concatenate([*ids, np.empty(0, np.int32)])))


def _row_groups(labeled: list[Labeled], row_group_labels: int) -> Iterator[slice]:
    start, labels = 0, 0
    for index, item in enumerate(labeled):
        if labels and labels + len(item.labels) > row_group_labels:
            yield slice(start, index)
            start, labels = index, 0
        labels += len(item.labels)
    if start < len(labeled):
        yield slice(start, len(labeled))


def _table(
    planned: list[PlannedRow],
    rows: list[Labeled],
    texts: list[str | None],
    schema: pa.Schema,
    vocab_size: int,
) -> pa.Table:
    columns = encode([row.labels for row in rows], vocab_size)
    scalars = [
        _scalars(planned[row.request.index], row, text)
        for row, text in zip(rows, texts, strict=True)
    ]
    arrays = [
        columns[f.name].cast(f.type)
        if f.name in columns
        else pa.array([s.get(f.name) for s in scalars], f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _scalars(plan: PlannedRow, row: Labeled, text: str | None) -> dict[str, object]:
    """Return the columns of a row that are not label arrays, as Python values."""
    labels = row.labels
    entropy = bucketed_entropy(labels) if labels.entropy is None else labels.entropy
    spans = [SpanFields(start=s.start, stop=s.stop, kind=s.kind) for s in row.spans]
    return {
        "id": plan["id"],
        "chunk": plan["chunk"],
        "parent_id": plan["parent_id"],
        "source": plan["source"],
        "meta": plan["meta"],
        "prompt": plan["prompt"],
        "sample": row.request.sample,
        "generation": text,
        "finish_reason": row.finish_reason,
        "n_tokens": len(row.input_ids),
        "n_labels": len(labels),
        "mean_nll": float(-np.mean(labels.token_logprob, dtype=np.float64)),
        "mean_entropy": float(np.mean(entropy, dtype=np.float64)),
        "coverage": float(np.mean(np.exp(labels.topk_logprobs.astype(np.float64)).sum(axis=1))),
        "input_ids": row.input_ids,
        "spans": spans,
        **_student_context(plan, row, spans),
    }


def _student_context(plan: PlannedRow, row: Labeled, spans: list[SpanFields]) -> dict[str, object]:
    """Return the student's ids and spans; a generation is appended to the student's own prompt."""
    ids, planned = plan["student_input_ids"], plan["student_spans"]
    if planned:
        planned = _matching_spans(row, planned)
    elif ids is not None:
        prompt = len(row.request.input_ids)
        shift = len(ids) - prompt
        ids = [*ids, *row.input_ids[prompt:]]
        planned = [
            SpanFields(start=s["start"] + shift, stop=s["stop"] + shift, kind=s["kind"])
            for s in spans
        ]
    return {"student_input_ids": ids, "student_spans": planned}


def _matching_spans(row: Labeled, planned: list[SpanFields]) -> list[SpanFields]:
    """Return the parts of the student's planned spans that have labels.

    They match the request's spans one by one; `row.spans` are parts of those (--keep-positions).
    """
    starts = [span.start for span in row.request.spans]
    found: list[SpanFields] = []
    for span in row.spans:
        number = bisect_right(starts, span.start) - 1
        student = planned[number]
        shift = student["start"] - starts[number]
        found.append(
            SpanFields(start=span.start + shift, stop=span.stop + shift, kind=student["kind"])
        )
    return found
