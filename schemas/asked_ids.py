"""`--ids-from COLUMN:N`, as the command line and a set's identity spell it. Imports little."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import SoftshardsError
from schemas.urls import Token

DEFAULT_ASKED = 16
LARGEST_ASKED = 1024
ASKED = r"^.{1,200}:[1-9][0-9]{0,3}$"
"""The form of COLUMN:N in an identity."""


def read_ids_from(_type: object, tokens: Sequence[Token]) -> str:
    """Return an argument as COLUMN:N (for cyclopts).

    Raises:
        SoftshardsError: N is no number from 1 to `LARGEST_ASKED`.
    """
    column, separator, number = tokens[0].value.rpartition(":")
    if not separator:
        column, number = number, str(DEFAULT_ASKED)
    if not column or not number.isdecimal() or not 1 <= int(number) <= LARGEST_ASKED:
        raise SoftshardsError(
            f"--ids-from is {tokens[0].value!r}; it must be COLUMN:N, with N from 1 to "
            f"{LARGEST_ASKED}",
            hint="for a label set as the input: --ids-from topk_ids:16",
        )
    return f"{column}:{int(number)}"


def asked_column(ids_from: str) -> str:
    """Return the column of the input that names the ids."""
    return ids_from.rpartition(":")[0]


def asked_count(ids_from: str | None) -> int:
    """Return the most ids that are taken per label; 0 if none are asked for."""
    return int(ids_from.rpartition(":")[2]) if ids_from else 0
