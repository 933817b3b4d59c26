"""Which hidden state of the student is compared with which of the teacher's. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.errors import SoftshardsError
from schemas.file_names import FINAL

FORM = "all, uniform, or STUDENT:TEACHER layers such as 0:0,5:11,final"
_PREFIX = "layer_"


class StatePair(NamedTuple):
    """A layer of the student, None for the input of its head; and the teacher's, by its name."""

    student: int | None
    teacher: str

    def __str__(self) -> str:
        """Return the pair as --state-layers takes it."""
        own = FINAL if self.student is None else str(self.student)
        return f"{own}:{self.teacher.removeprefix(_PREFIX)}"


def parse_pairs(text: str) -> tuple[StatePair, ...] | None:
    """Return the pairs that --state-layers lists; None for `all` and `uniform`.

    Raises:
        SoftshardsError: it has another form, or names a pair twice.
    """
    if text in ("all", "uniform"):
        return None
    pairs = tuple(_parse_pair(text, item) for item in text.split(","))
    if len(set(pairs)) < len(pairs):
        raise SoftshardsError(f"--state-layers is {text!r}; it names a pair twice")
    return pairs


def choose_pairs(text: str, stored: Sequence[str], student_layers: int) -> tuple[StatePair, ...]:
    """Return the pairs of --state-layers for a label set and a student.

    `all`: each stored layer with the student's layer of the same number. `uniform`: the stored
    layers spread evenly over the student's, the last with the last: layers 0 to 23 of a teacher
    take a student of 12 layers two by two. In both, `final` goes with the input of the student's
    head.

    Args:
        text: the flag.
        stored: names of the layers in the label set.
        student_layers: number of the student's decoder layers.

    Raises:
        SoftshardsError: a layer is not stored, or the student has none of the number.
    """
    if (listed := parse_pairs(text)) is not None:
        missing = sorted({pair.teacher for pair in listed} - set(stored))
        if missing:
            raise SoftshardsError(
                f"--state-layers {text}: the label set holds no states of {', '.join(missing)}",
                hint=f"it has {', '.join(stored)}; others need `labeler label --states`",
            )
        return listed
    inner = sorted(int(name.removeprefix(_PREFIX)) for name in stored if name != FINAL)
    if text == "all" and inner and inner[-1] >= student_layers:
        raise SoftshardsError(
            f"--state-layers all: the set holds states of layer {inner[-1]}, and the student has "
            f"{student_layers} layers, counted from 0",
            hint="take --state-layers uniform, or list pairs such as 5:11",
        )
    even = [-(-(at + 1) * student_layers // len(inner)) - 1 for at in range(len(inner))]
    own = inner if text == "all" else even
    pairs = [StatePair(layer, f"{_PREFIX}{number}") for layer, number in zip(own, inner)]
    return (*pairs, StatePair(None, FINAL)) if FINAL in stored else tuple(pairs)


def _parse_pair(text: str, item: str) -> StatePair:
    own, colon, theirs = item.strip().partition(":")
    theirs = theirs if colon else own
    if any(side != FINAL and not side.isdecimal() for side in (own, theirs)):
        raise SoftshardsError(f"--state-layers is {text!r}; it must be {FORM}")
    return StatePair(
        None if own == FINAL else int(own),
        FINAL if theirs == FINAL else f"{_PREFIX}{int(theirs)}",
    )
