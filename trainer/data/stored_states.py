"""The hidden states of label sets: checked, and of one codec. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pyarrow as pa

from schemas import LabelSet, LabelSetError
from schemas.file_names import FINAL, HEAD_FILE
from schemas.manifest import StatesRecord
from schemas.state_codec import (
    StateBasis,
    decode_states,
    encode_states,
    label_offsets,
    state_fields,
)
from schemas.version import STATES_1

Bases = Mapping[str, StateBasis]
"""The basis of each layer."""


def require_states(sets: tuple[LabelSet, ...], layers: tuple[str, ...]) -> StatesRecord:
    """Return how the sets of a run store hidden states.

    Args:
        sets: all sets of a mixture.
        layers: names of the layers that are read.

    Raises:
        LabelSetError: names the first set that has none, lacks a layer, or cannot be mixed with the
            first: its states are of another head or width.
    """
    first: StatesRecord | None = None
    for labels in sets:
        record = labels.states
        if record is None:
            raise LabelSetError(
                "the labels hold no hidden states, and --loss needs them",
                path=labels.place,
                hint=f"label with `labeler label --states {_flag(layers)}`, or leave exact_... and "
                "states out of --loss",
            )
        if missing := [layer for layer in layers if layer not in record.layers]:
            raise LabelSetError(
                f"the labels hold states of {', '.join(record.layers)}, and not of "
                f"{', '.join(missing)}, which --loss needs",
                path=labels.place,
                hint=f"label with `labeler label --states {_flag(layers)}`",
            )
        if first is None:
            first = record
            continue
        for what, ours, theirs in (
            ("the teacher's head", _head(record), _head(first)),
            ("the width of states", record.dimensions, first.dimensions),
        ):
            if ours != theirs:
                raise LabelSetError(
                    f"{what} differs from the one of {sets[0].place}: their states cannot be mixed",
                    path=labels.place,
                    hint="leave it out of --mix, or label it with the same teacher",
                )
    assert first is not None
    return first


def mixes_codecs(sets: tuple[LabelSet, ...]) -> bool:
    """Return whether sets store states in several codecs: then all are read as float16.

    `labeler label` stores small sets as float16 whatever --state-kl says.
    """
    return len({record.codec for labels in sets if (record := labels.states)}) > 1


def bases_to_decode(sets: tuple[LabelSet, ...], layers: tuple[str, ...]) -> tuple[Bases, ...]:
    """Return of each set the bases of the layers that must be read as float16; empty for most.

    Raises:
        LabelSetError: the file of a basis is missing or altered.
    """
    if not mixes_codecs(sets):
        return tuple({} for _ in sets)
    found = ({layer: labels.basis(layer) for layer in layers} for labels in sets)
    return tuple({n: basis for n, basis in of_set.items() if basis} for of_set in found)


def as_half(table: pa.Table, bases: Bases) -> pa.Table:
    """Return rows with the codes of some layers as float16."""
    for layer, basis in bases.items():
        d, states = len(basis.mean), decode_states(table, basis, layer)
        rows = [states[start:stop] for start, stop in pairwise(label_offsets(table, layer))]
        columns = encode_states(rows, d, layer=layer)
        for field in state_fields(d, STATES_1, layer):
            at = table.column_names.index(field.name)
            table = table.set_column(at, field, columns[field.name].cast(field.type))
    return table


def _head(record: StatesRecord) -> str | None:
    file = record.file(HEAD_FILE)
    return None if file is None else file.sha256


def _flag(layers: tuple[str, ...]) -> str:
    return ",".join(layer.removeprefix("layer_") for layer in layers or (FINAL,))
