"""Tails at temperatures besides 1: the flag, and the column that holds them. Imports little.

The logprobs of the ids follow from those at T = 1: they are in proportion to exp(logprob / T), and
their sum is 1 less the tail. So the tail alone is stored, 2 bytes per position and temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from schemas.errors import SoftshardsError
from schemas.urls import Token

TEMPERED_TAILS = "tempered_tails"
"""Column: for each position, the log of the mass outside the ids at each of the temperatures."""
LARGEST_TEMPERATURE = 1000.0
MOST_TEMPERATURES = 16


def read_temperatures(_type: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Return arguments as temperatures (for cyclopts): numbers, with commas or one by one.

    Raises:
        SoftshardsError: a value is not a temperature, or is there twice.
    """
    texts = [text for token in tokens for text in token.value.split(",") if text.strip()]
    try:
        found = tuple(float(text) for text in texts)
    except ValueError as error:
        raise SoftshardsError(f"--label-temperatures: {error}") from error
    for value in found:
        if not 0 < value <= LARGEST_TEMPERATURE or math.isnan(value):
            raise SoftshardsError(
                f"--label-temperatures: {value:g} is not above 0 and at most "
                f"{LARGEST_TEMPERATURE:g}"
            )
        if value == 1 or found.count(value) > 1:
            raise SoftshardsError(
                f"--label-temperatures: {value:g} is "
                + ("always stored" if value == 1 else "given twice")
            )
    if len(found) > MOST_TEMPERATURES:
        raise SoftshardsError(f"--label-temperatures: at most {MOST_TEMPERATURES} are stored")
    return found
