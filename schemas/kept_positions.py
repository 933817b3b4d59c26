"""The rule of `--keep-positions`, as the command line and an identity spell it. Imports little."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.errors import SoftshardsError
from schemas.urls import Token

LABEL_WEIGHTS = "label_weights"
"""Column of sets with the rule `sample`: for each label, 1 / the probability that it was kept."""
KEPT = r"^(entropy>|top-share |sample )[0-9][0-9.e-]{0,30}$"
"""The form of a rule in an identity."""
SMALLEST_SHARE = 1e-3
EVEN = 0.25
"""Part of `sample` that ignores the entropy, so that no weight is above 1 / (EVEN x share)."""


Kind = Literal["entropy", "top-share", "sample"]
KINDS: dict[str, Kind] = {"entropy": "entropy", "top-share": "top-share", "sample": "sample"}


@dataclass(frozen=True)
class KeepRule:
    """A rule of `--keep-positions`.

    Attributes:
        kind: `entropy`: labels with more than `value` nats. `top-share`: the share `value` of each
            row's labels with the highest entropy. `sample`: about that share, drawn.
        value: a number of nats, or a share of the labels of a row.
    """

    kind: Kind
    value: float

    def __str__(self) -> str:
        between = ">" if self.kind == "entropy" else " "
        return f"{self.kind}{between}{self.value:g}"

    @property
    def largest_weight(self) -> float | None:
        """The largest weight of a label; None where labels have none."""
        return 1 / (EVEN * self.value) if self.kind == "sample" else None

    def most_labels(self, labels: int, rows: int) -> int:
        """Estimate how many of `labels` in `rows` rows are kept; `entropy` may keep all."""
        if self.kind == "entropy":
            return labels
        return min(labels, int(labels * self.value) + rows)


def parse_rule(text: str) -> KeepRule:
    """Return the rule of a text: `entropy>1.5`, `top-share 0.2` or `sample 0.2`.

    Raises:
        ValueError: it is no rule, or its number is out of range.
    """
    found = re.fullmatch(r" *(entropy *>|top-share +|sample +) *([0-9][0-9.eE-]*) *", text)
    if found is None:
        raise ValueError("it must be 'entropy>NATS', 'top-share SHARE' or 'sample SHARE'")
    kind, value = KINDS[found[1].rstrip("> ")], float(found[2])
    value = float(f"{value:g}")  # as a rule spells itself
    if kind == "entropy":
        if not 0 <= value < 100:
            raise ValueError("an entropy in nats must be from 0 to less than 100")
    elif not SMALLEST_SHARE <= value < 1:
        raise ValueError(f"a share must be from {SMALLEST_SHARE:g} to less than 1")
    return KeepRule(kind, value)


def read_keep_positions(_type: object, tokens: Sequence[Token]) -> str:
    """Return an argument as a rule spells itself (for cyclopts).

    Raises:
        SoftshardsError: it is no rule.
    """
    try:
        return str(parse_rule(tokens[0].value))
    except ValueError as error:
        raise SoftshardsError(
            f"--keep-positions is {tokens[0].value!r}: {error}",
            hint="for a fifth of the labels: --keep-positions 'top-share 0.2'",
        ) from error
