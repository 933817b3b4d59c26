"""Label sets by a tiny teacher, written through the schemas API alone.

They are what `labeler label` would write: the trainer cannot tell the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from schemas.arrow import PLAN_SCHEMA, shard_writer
from schemas.atomic import atomic_path
from schemas.codec import Labels, encode
from schemas.draws import count_draws
from schemas.file_names import FINAL, HEAD_FILE, hidden_name, shard_name
from schemas.fingerprint import (
    TOKENIZER_FILES,
    sha256_file,
    tokenizer_digest,
    weights_digest,
)
from schemas.hidden_part import hidden_table, write_hidden
from schemas.hidden_reader import content_digest
from schemas.index import read_index, write_index
from schemas.journal import HiddenPart, UnitEntry, rejects_path, write_entry, write_rejects
from schemas.ledger import LedgerSums, write_ledger
from schemas.manifest import (
    FileDigest,
    Identity,
    Manifest,
    StatesRecord,
    Totals,
    write_manifest,
)
from schemas.plan import write_plan
from schemas.shard import byte_ranges, footer_metadata, identity_schema
from schemas.state_codec import StateBasis, fit_basis
from schemas.stored_head import HeadFacts, write_basis
from schemas.version import STATES_1, STATES_2

ENGINE = {
    "engine": "transformers",
    "engine_version": "5.0",
    "device": "cpu",
    "engine_seconds": 1.0,
}
"""Provenance of a unit."""


@dataclass(kw_only=True)
class Row:
    """A row before it is labeled. Spans: (start, stop, kind). The last fields are of answers."""

    id: str
    input_ids: list[int]
    spans: list[tuple[int, int, str]]
    student_input_ids: list[int] | None = None
    student_spans: list[tuple[int, int, str]] | None = None
    sample: int = 0
    prompt: str | None = None
    generation: str | None = None
    finish_reason: str | None = None
    source: str | None = None
    meta: str | None = None

    @property
    def n_labels(self) -> int:
        return sum(stop - start for start, stop, _ in self.spans)


def random_rows(
    count: int, vocab_size: int, *, seed: int = 0, shortest: int = 6, longest: int = 48
) -> list[Row]:
    """Return rows of random tokens; every third has two spans with a gap."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(rng.integers(shortest, longest + 1))
        ids = rng.integers(1, vocab_size, length).tolist()
        spans = [(1, length, "text")]
        if index % 3 == 2:
            spans = [(2, 3, "thinking"), (4, length, "answer")]
        rows.append(Row(id=f"row{index:03d}", input_ids=ids, spans=spans))
    return rows


@torch.no_grad()
def teacher_states(
    model: LlamaForCausalLM, ids: list[int], layers: tuple[str, ...]
) -> NDArray[np.float32]:
    """Return the states [length, layers, d] of layers; the one at t predicts the token at t + 1."""
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: outputs.append(call[2]))
        for layer in model.model.layers
    ]
    final = model.model(torch.tensor([ids])).last_hidden_state
    for hook in hooks:
        hook.remove()
    found = [final if name == FINAL else outputs[int(name.split("_")[1])] for name in layers]
    return torch.stack([state[0] for state in found], 1).float().numpy()


@dataclass(frozen=True, kw_only=True)
class _StoredStates:
    """How a set stores hidden states, and those of each row, by its id and sample."""

    record: StatesRecord
    bases: dict[str, StateBasis]
    of_rows: dict[tuple[str, int], NDArray[np.float32]]

    @classmethod
    def make(
        cls,
        path: Path,
        model: LlamaForCausalLM,
        rows: list[Row],
        layers: tuple[str, ...],
        step: float | None,
    ) -> _StoredStates:
        """Run the teacher, and write its head and the bases."""
        of_rows = {}
        for row in rows:
            at = [t - 1 for start, stop, _ in row.spans for t in range(start, stop)]
            of_rows[row.id, row.sample] = teacher_states(model, row.input_ids, layers)[at]
        weight = model.lm_head.weight.detach()[: model.config.vocab_size]
        (path / HEAD_FILE).parent.mkdir()
        facts = HeadFacts(valid_vocab=len(weight))
        save_file({"weight": weight.contiguous()}, path / HEAD_FILE, metadata=facts.metadata)
        files = [FileDigest(path=HEAD_FILE, sha256=sha256_file(path / HEAD_FILE))]
        bases = {}
        if step is not None:
            fisher = (weight.T @ weight / len(weight)).numpy()
            for number, layer in enumerate(layers):
                sample = np.concatenate([states[:, number] for states in of_rows.values()])
                bases[layer] = replace(fit_basis(sample, fisher), step=step)
                files.append(write_basis(path, layer, bases[layer]))
        record = StatesRecord(
            layers=layers,
            codec=STATES_1 if step is None else STATES_2,
            dimensions=weight.shape[1],
            files=tuple(files),
        )
        return cls(record=record, bases=bases, of_rows=of_rows)

    def write(
        self,
        path: Path,
        number: int,
        unit: list[Row],
        table: pa.Table,
        rows_per_group: int,
        identity: Identity,
    ) -> HiddenPart:
        """Write the states of a unit."""
        tables = [
            hidden_table(
                table.slice(at, rows_per_group),
                [self.of_rows[row.id, row.sample] for row in unit[at : at + rows_per_group]],
                self.record,
                self.bases,
            )
            for at in range(0, len(unit), rows_per_group)
        ]
        part = path / hidden_name(number)
        return write_hidden(
            part, tables, states=self.record, identity_digest=identity.digest, unit=number
        )


@torch.no_grad()
def teacher_logprobs(model: torch.nn.Module, ids: list[int], vocab_size: int) -> torch.Tensor:
    """Return float64 log-probabilities [length, vocab_size]; row t predicts the token at t + 1."""
    logits = model(torch.tensor([ids])).logits[0, :, :vocab_size]
    return torch.log_softmax(logits.double(), -1)


def label_row(
    model: torch.nn.Module,
    row: Row,
    vocab_size: int,
    k: int,
    draws: int | None = None,
    temperatures: tuple[float, ...] = (),
) -> Labels:
    """Label a row by one forward pass of the teacher."""
    logp = teacher_logprobs(model, row.input_ids, vocab_size)
    at = [t for start, stop, _ in row.spans for t in range(start, stop)]
    logp = logp[[t - 1 for t in at]]
    top = logp.topk(k, dim=-1)
    rest = logp.scatter(1, top.indices, float("-inf"))
    tokens = torch.tensor([row.input_ids[t] for t in at], dtype=torch.int64)
    tails = [
        (logp / t).log_softmax(1).scatter(1, top.indices, float("-inf")).logsumexp(1)
        for t in temperatures
    ]
    drawn = systematic(logp.exp().numpy(), draws) if draws else (None, None)
    return Labels(
        topk_ids=top.indices.numpy().astype(np.int32),
        topk_logprobs=top.values.numpy().astype(np.float32),
        tail_logprob=rest.logsumexp(1).numpy().astype(np.float32),
        token_logprob=logp.gather(1, tokens[:, None])[:, 0].numpy().astype(np.float32),
        sample_ids=drawn[0],
        sample_counts=drawn[1],
        tempered_tails=torch.stack(tails, 1).numpy().astype(np.float32) if tails else None,
    )


def systematic(p: NDArray[np.float64], draws: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw ids [n, m] systematically in proportion to p [n, V], with counts, in a different way."""
    u = np.random.default_rng(0).random(len(p))[:, None]
    counts = np.floor(p.cumsum(1) * draws / p.sum(1, keepdims=True) - u + 1).clip(0, draws)
    counts[:, -1] = draws
    ids = np.arange(p.shape[1], dtype=np.int32)
    return count_draws(np.stack([np.repeat(ids, c) for c in _steps(counts)]))


def _steps(cumulative: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.diff(cumulative, axis=1, prepend=0).astype(np.int64)


def build_label_set(
    path: Path,
    teacher_dir: Path,
    rows: list[Row],
    *,
    vocab_size: int,
    k: int = 8,
    rows_per_unit: int = 12,
    rows_per_group: int = 4,
    max_length: int = 64,
    layers: tuple[str, ...] = (),
    step: float | None = None,
    **identity_fields: Any,
) -> Path:
    """Write a complete label set of `rows` to `path`; `identity_fields` override its identity.

    With `layers` it has their hidden states, in float16, or with a `step` in `states/2`.
    """
    model = LlamaForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()
    (path / "tokenizer").mkdir(parents=True)
    files = []
    for name in TOKENIZER_FILES:
        if (teacher_dir / name).exists():
            data = (teacher_dir / name).read_bytes()
            (path / "tokenizer" / name).write_bytes(data)
            digest = sha256_file(path / "tokenizer" / name)
            files.append(FileDigest(path=f"tokenizer/{name}", sha256=digest))
    identity = Identity(
        weights=weights_digest(teacher_dir),
        model_config_digest=sha256_file(teacher_dir / "config.json"),
        tokenizer=tokenizer_digest(teacher_dir),
        vocab_size=vocab_size,
        chat_template=None,
        dtype="float32",
        head_dtype="float32",
        mode="score",
        k=k,
        max_length=max_length,
        overlap=0,
    ).model_copy(update=identity_fields)
    states = _StoredStates.make(path, model, rows, layers, step) if layers else None
    if states is not None:
        identity = identity.model_copy(update={"states": states.record.identity})
    units = [rows[i : i + rows_per_unit] for i in range(0, len(rows), rows_per_unit)]
    plan = write_plan(path, [_plan_table(unit, number) for number, unit in enumerate(units)])
    entries = [
        _write_unit(path, number, unit, model, identity, rows_per_group, states)
        for number, unit in enumerate(units)
    ]
    totals = Totals(
        units=len(units),
        rows=sum(e.rows for e in entries),
        tokens=sum(e.tokens for e in entries),
        labels=sum(e.labels for e in entries),
        rejects=0,
        bytes=sum(e.bytes for e in entries),
    )
    pages = write_index(path, entries)
    hidden = write_index(path, entries, hidden=True) if states else None
    manifest = Manifest(
        status="complete",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=len(units),
        tokenizer_files=tuple(files),
        index_pages=pages,
        states=states and states.record,
        hidden_pages=hidden,
        content_digest=content_digest(
            read_index(path, pages), tuple(read_index(path, hidden or (), hidden=True))
        ),
        totals=totals,
        provenance={"engine": "transformers", "teacher": str(teacher_dir)},
    )
    version = {"format_version": manifest.written_version}
    write_manifest(path, manifest.model_copy(update=version))
    costs = LedgerSums()
    for entry in entries:
        costs.add(entry)
    write_ledger(path, costs.ledger())
    return path


def _write_unit(
    path: Path,
    number: int,
    unit: list[Row],
    model: torch.nn.Module,
    identity: Identity,
    rows_per_group: int,
    states: _StoredStates | None,
) -> UnitEntry:
    schema = identity_schema(identity)
    settings = (identity.vocab_size, identity.k, identity.draws, identity.label_temperatures or ())
    labels = [label_row(model, row, *settings) for row in unit]
    if identity.has_weights:
        weights = (1 + np.arange(len(row), dtype=np.float32) % 4 for row in labels)
        labels = [replace(row, label_weights=w) for row, w in zip(labels, weights)]
    columns: dict[str, Any] = {
        "id": [row.id for row in unit],
        "chunk": [0] * len(unit),
        "sample": [row.sample for row in unit],
        "prompt": [row.prompt for row in unit],
        "generation": [row.generation for row in unit],
        "finish_reason": [row.finish_reason for row in unit],
        "source": [row.source for row in unit],
        "meta": [row.meta for row in unit],
        "n_tokens": [len(row.input_ids) for row in unit],
        "n_labels": [row.n_labels for row in unit],
        "input_ids": [row.input_ids for row in unit],
        "spans": [_spans(row.spans) for row in unit],
        "student_input_ids": [row.student_input_ids for row in unit],
        "student_spans": [_spans(row.student_spans) for row in unit],
    }
    encoded = encode(labels, identity.vocab_size)
    arrays = []
    for column in schema:
        if column.name in encoded:
            arrays.append(encoded[column.name].cast(column.type))
        elif column.name in columns:
            arrays.append(pa.array(columns[column.name], column.type))
        else:
            arrays.append(pa.nulls(len(unit), column.type))
    footer = footer_metadata(identity, unit=number, tail_source="exact", entropy_source="none")
    schema = schema.with_metadata(footer)
    table = pa.table(arrays, schema=schema)
    shard = path / shard_name(number)
    with atomic_path(shard) as tmp, shard_writer(tmp, schema) as writer:
        writer.write_table(table, row_group_size=rows_per_group)
    groups, foot = byte_ranges(shard)
    entry = UnitEntry(
        unit=number,
        shard=shard_name(number),
        rows=len(unit),
        labels=sum(row.n_labels for row in unit),
        tokens=sum(len(row.input_ids) for row in unit),
        rejects=0,
        row_groups=groups,
        footer=foot,
        hidden=states and states.write(path, number, unit, table, rows_per_group, identity),
        rejects_sha256=write_rejects(rejects_path(path, number), []),
        provenance=ENGINE,
    )
    write_entry(path, entry)
    return entry


def _plan_table(unit: list[Row], number: int) -> pa.Table:
    rows = [
        {
            "unit": number,
            "id": row.id,
            "chunk": 0,
            "n_tokens": len(row.input_ids),
            "n_labels": row.n_labels,
            "input_ids": row.input_ids,
            "spans": _spans(row.spans),
            "student_input_ids": row.student_input_ids,
            "student_spans": _spans(row.student_spans),
        }
        for row in unit
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def _spans(spans: list[tuple[int, int, str]] | None) -> list[dict[str, Any]] | None:
    if spans is None:
        return None
    return [{"start": start, "stop": stop, "kind": kind} for start, stop, kind in spans]
