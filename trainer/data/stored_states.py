"""Check that label sets hold the hidden states that a loss reads. No torch."""

from __future__ import annotations

from schemas import LabelSet, LabelSetError
from schemas.file_names import FINAL, HEAD_FILE
from schemas.manifest import StatesRecord

SAME_CODEC = "label both with --state-kl 0 (small sets are stored so in any case)"


def require_states(sets: tuple[LabelSet, ...], layers: tuple[str, ...]) -> StatesRecord:
    """Return how the sets of a run store hidden states.

    Args:
        sets: all sets of a mixture.
        layers: names of the layers that are read.

    Raises:
        LabelSetError: names the first set that has none, lacks a layer, or cannot be mixed with the
            first: its states are of another head, width or codec.
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
        again = "leave it out of --mix, or label it with the same teacher"
        for what, ours, theirs, hint in (
            ("the teacher's head", _head(record), _head(first), again),
            ("the width of states", record.dimensions, first.dimensions, again),
            ("the codec of states", record.codec, first.codec, SAME_CODEC),
        ):
            if ours != theirs:
                raise LabelSetError(
                    f"{what} differs from the one of {sets[0].place}: their states cannot be mixed",
                    path=labels.place,
                    hint=hint,
                )
    assert first is not None
    return first


def _head(record: StatesRecord) -> str | None:
    file = record.file(HEAD_FILE)
    return None if file is None else file.sha256


def _flag(layers: tuple[str, ...]) -> str:
    return ",".join(layer.removeprefix("layer_") for layer in layers or (FINAL,))
