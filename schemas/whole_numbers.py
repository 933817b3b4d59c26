"""Flags that take whole numbers refuse fractions. The parser would round: 0.5 to 0, 1.5 to 2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from schemas.errors import SoftshardsError

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection

NUMBER = re.compile(r"(?:\d+\.\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
"""A number with a point, alone or in a JSON list."""
LARGEST = 2**53
"""Up to here the parser, which reads 3.0 as a float, keeps every whole number."""


def refuse_fractions(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Check the values of whole-number flags as typed, on the command line and in YAML files.

    It is an entry of cyclopts' `App.config`, after the files: one check for all commands.

    Raises:
        SoftshardsError: a value has a fraction; the message names the flag.
    """
    for argument in arguments:
        if not _takes_whole_numbers(argument.hint):
            continue
        for token in argument.tokens:
            for number in NUMBER.findall(token.value):
                if not float(number).is_integer() or float(number) > LARGEST:
                    has_file = token.source not in ("cli", "dict")
                    raise SoftshardsError(
                        f"{argument.name} is {token.value}; it must be a whole number",
                        path=token.source if has_file else None,
                    )


def _takes_whole_numbers(hint: object) -> bool:
    """Return True for int, int | None, tuple[int, ...], but not for int | float."""
    parts = get_args(hint)
    if not parts:
        return hint is int
    return float not in parts and any(map(_takes_whole_numbers, parts))
