"""A verdict on a row, and what counts as one. It imports little: worker processes start often."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass

LONGEST_FAULT = 300
"""Characters of a fault that are kept; a verifier decides what it raises or returns."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's verdict on a row.

    Attributes:
        number: its number; 1 or 0 for true and false; None if it gave none.
        passed: whether the verifier keeps the row.
        fault: why it gave no answer: a crash, the time limit, nonsense.
    """

    number: float | None
    passed: bool
    fault: str | None = None


def failed(fault: str) -> Verdict:
    """Return the verdict on a row that the verifier could not judge."""
    return Verdict(None, False, fault[:LONGEST_FAULT])


def as_verdict(value: object) -> Verdict:
    """Return a verifier's return value as a verdict."""
    if isinstance(value, bool):
        return Verdict(float(value), value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return as_verdict(value.item())
    if isinstance(value, int | float) and not math.isnan(value):
        return Verdict(float(value), True)
    return failed(f"returned {reprlib.repr(value):.60}, neither true or false nor a number")


def describe(error: BaseException) -> str:
    """Return an exception's class and the first line of its message, whatever it may be."""
    name = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except BaseException:  # the class is the user's
        lines = []
    return f"{name}: {lines[0]}" if lines else name
