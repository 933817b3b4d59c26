"""Complete label sets with hidden states: a random head, states, and the labels that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from schemas.codec import Labels
from schemas.file_names import FINAL, HEAD_FILE, hidden_name
from schemas.fingerprint import sha256_file
from schemas.hidden_part import hidden_table, write_hidden
from schemas.hidden_reader import content_digest
from schemas.index import read_index, write_index
from schemas.journal import read_entries, write_entry
from schemas.labelset import LabelSet
from schemas.manifest import FileDigest, Manifest, StatesRecord, read_manifest, write_manifest
from schemas.shard import write_shard
from schemas.state_codec import StateBasis, fit_basis
from schemas.stored_head import HeadFacts, write_basis
from schemas.version import PLAIN_1, STATES_2
from tests.schemas.samples import table
from tests.schemas.sets import write_costs, write_set

VOCAB, WIDTH, K = 300, 24, 6
LAYERS = (FINAL, "layer_3")
STEP = 0.02


def head_weight() -> NDArray[np.float32]:
    """Return the head of all sets here, [VOCAB, WIDTH]."""
    return np.random.default_rng(1).normal(size=(VOCAB, WIDTH)).astype(np.float32)


def states_of(row: int, n: int) -> NDArray[np.float32]:
    """Return the states [n, layers, WIDTH] of a row."""
    return np.random.default_rng(1000 + row).normal(size=(n, len(LAYERS), WIDTH)).astype(np.float32)


def exact_logprobs(states: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log-probabilities [n, VOCAB] of final states [n, WIDTH]."""
    logits = states.astype(np.float64) @ head_weight().T.astype(np.float64)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def labels_of(states: NDArray[np.floating], tokens: NDArray[np.integer]) -> Labels:
    """Return the top-K labels of final states [n, WIDTH]."""
    logp = exact_logprobs(states)
    ids = np.argsort(-logp, axis=1, kind="stable")[:, :K]
    rest = logp.copy()
    np.put_along_axis(rest, ids, -np.inf, axis=1)
    return Labels(
        topk_ids=ids.astype(np.int32),
        topk_logprobs=np.take_along_axis(logp, ids, 1).astype(np.float32),
        tail_logprob=np.logaddexp.reduce(rest, axis=1).astype(np.float32),
        token_logprob=logp[np.arange(len(logp)), tokens].astype(np.float32),
    )


def rows_table(rows: range) -> pa.Table:
    """Return rows `row/{i}` of 2 to 9 tokens, labeled as their states say."""
    tokens = {i: np.random.default_rng(i).integers(0, VOCAB, 2 + i * 3 % 8) for i in rows}
    labels = [labels_of(states_of(i, len(ids) - 1)[:, 0], ids[1:]) for i, ids in tokens.items()]
    made = table(labels, vocab_size=VOCAB, input_ids=[ids.tolist() for ids in tokens.values()])
    at = made.column_names.index("id")
    return made.set_column(at, made.schema.field("id"), pa.array([f"row/{i}" for i in rows]))


def state_basis() -> StateBasis:
    """Return the basis of all sets of `states/2` here."""
    sample = np.concatenate([states_of(i, 50)[:, 0] for i in range(8)])
    weight = head_weight()
    return replace(fit_basis(sample, weight.T @ weight / VOCAB), step=STEP)


def write_state_set(
    path: Path,
    states_codec: str,
    *,
    codec: str = PLAIN_1,
    units: int = 2,
    first: int = 0,
    head: NDArray[np.float32] | None = None,
    states: Callable[[int, int], NDArray[np.float32]] = states_of,
    step: float = STEP,
) -> Path:
    """Write a complete set: `units` shards, each of two row groups of three rows.

    Args:
        path: the set's folder.
        states_codec: of the hidden states, of `LAYERS`.
        codec: of the labels.
        units: number of shards.
        first: number of the first row.
        head: the head to store, if not that of the labels.
        states: returns what is stored of a row, if not `states_of`.
        step: of the bases.
    """
    numbers = [
        [range(at, at + 3), range(at + 3, at + 6)] for at in range(first, first + 6 * units, 6)
    ]
    write_set(path, [[rows_table(rows) for rows in unit] for unit in numbers], codec)
    manifest = read_manifest(path)
    (path / "head").mkdir()
    facts = HeadFacts(valid_vocab=VOCAB)
    weight = head_weight() if head is None else head
    save_file({"weight": weight}, path / HEAD_FILE, metadata=facts.metadata)
    files = [FileDigest(path=HEAD_FILE, sha256=sha256_file(path / HEAD_FILE))]
    bases = {}
    if states_codec == STATES_2:
        bases = dict.fromkeys(LAYERS, replace(state_basis(), step=step))
        files += [write_basis(path, layer, basis) for layer, basis in bases.items()]
    record = StatesRecord(layers=LAYERS, codec=states_codec, dimensions=WIDTH, files=tuple(files))
    identity = manifest.identity.model_copy(update={"states": record.identity, "k": K})
    changes = {"states": record, "identity": identity, "identity_digest": identity.digest}
    manifest = manifest.model_copy(update=changes)
    labels = LabelSet(path, read_manifest(path), read_index(path, manifest.index_pages))
    for entry in read_entries(path, units):
        ranges = [g for g in labels.row_groups if g.shard == entry.shard]
        tables = [labels.read_row_group(group) for group in ranges]
        order = labels.reader._orders.get(entry.shard)
        groups, footer = write_shard(
            path / entry.shard,
            tables,
            identity=identity,
            unit=entry.unit,
            tail_source="exact",
            entropy_source="full",
            order=order,
        )
        hidden = write_hidden(
            path / hidden_name(entry.unit),
            [
                hidden_table(rows, [states(i, n) for i, n in _sizes(rows)], record, bases)
                for rows in tables
            ],
            states=record,
            identity_digest=identity.digest,
            unit=entry.unit,
        )
        changed = {"row_groups": groups, "footer": footer, "hidden": hidden}
        write_entry(path, entry.model_copy(update=changed))
    return close_set(path, manifest)


def close_set(path: Path, manifest: Manifest) -> Path:
    """Index a set whose journal is complete, and write its manifest."""
    entries = read_entries(path, manifest.planned_units)
    write_costs(path, entries)
    pages, hidden = write_index(path, entries), write_index(path, entries, hidden=True)
    changes = {
        "format_version": manifest.written_version,
        "index_pages": pages,
        "hidden_pages": hidden,
        "content_digest": content_digest(
            read_index(path, pages), tuple(read_index(path, hidden, hidden=True))
        ),
    }
    write_manifest(path, manifest.model_copy(update=changes))
    return path


def _sizes(rows: pa.Table) -> list[tuple[int, int]]:
    """Return (number, labels) of each row."""
    names = (int(name.removeprefix("row/")) for name in rows["id"].to_pylist())
    return list(zip(names, rows["n_labels"].to_pylist(), strict=True))
