"""Several label sets in one run: the row groups of each that an epoch visits.

An epoch is one pass over the set that `--labels` names. A set that is mixed in with weight w gets w
passes in the same epoch: 2 shows it twice, 0.25 shows a quarter of its row groups, and the next
quarter in the next epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from trainer.data.order import permutation, row_group_order


@dataclass(frozen=True, kw_only=True)
class Part:
    """A label set of a mixture; `weight` is the number of its passes per epoch."""

    labels: LabelSet
    weight: float = 1.0


def open_mixture(
    labels: LabelSet, mix: tuple[str, ...], *, allow_partial: bool = False
) -> tuple[Part, ...]:
    """Return a label set and the sets to mix in, each given as PATH or PATH=WEIGHT.

    Raises:
        SoftshardsError: a weight is not a positive number, or a tokenizer differs.
    """
    parts = [Part(labels=labels)]
    for text in mix:
        path, weight = _split(text)
        other = open_label_set(path, allow_partial=allow_partial)
        check_same_ids(other, labels, "mix label sets of teachers that share a tokenizer")
        if other.labels == 0:
            raise LabelSetError("the label set holds no labels", path=path)
        parts.append(Part(labels=other, weight=weight))
    return tuple(parts)


def check_same_ids(other: LabelSet, labels: LabelSet, hint: str) -> None:
    """Check that the token ids of two label sets mean the same tokens.

    Raises:
        SoftshardsError: their tokenizers differ.
    """
    if other.manifest.identity.tokenizer != labels.manifest.identity.tokenizer:
        raise SoftshardsError(
            f"its tokenizer differs from the one of {labels.place}: ids mean different tokens",
            path=other.place,
            hint=hint,
        )


def _split(text: str) -> tuple[str, float]:
    path, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError as error:
        raise SoftshardsError(f"--mix {text}: {weight!r} is not a number") from error
    if not 0 < value < 1e6:
        raise SoftshardsError(f"--mix {text}: the weight must be above 0")
    return path, value


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The row groups of an epoch, in the order of the visits.

    Attributes:
        order: int64 [n], numbers of visits of all parts, those of part 0 first.
        groups: of each part, int64, the row groups that the epoch visits.
    """

    order: NDArray[np.int64]
    groups: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: slice) -> NDArray[np.int64]:
        """Return (part, row group) [visits, 2]."""
        visits = self.order[at]
        stops = np.cumsum([len(groups) for groups in self.groups])
        found = np.empty((len(visits), 2), np.int64)
        found[:, 0] = np.searchsorted(stops, visits, side="right")
        for number, groups in enumerate(self.groups):
            here = found[:, 0] == number
            found[here, 1] = groups[visits[here] - (stops[number] - len(groups))]
        return found


def epoch_order(parts: tuple[Part, ...], seed: int, epoch: int) -> EpochOrder:
    """Return the order of an epoch: a pure function.

    Whatever its weight w, the visits of a part's row groups over the epochs differ by at most one:
    epoch e takes places floor(e w n) to floor((e + 1) w n) of a cycle through all n.
    """
    chosen: list[NDArray[np.int64]] = []
    for number, part in enumerate(parts):
        n = len(part.labels.row_groups)
        start, stop = (int(np.floor(e * part.weight * n + 1e-9)) for e in (epoch, epoch + 1))
        if n and start % n == stop % n == 0:  # whole passes
            groups = np.repeat(np.arange(n), (stop - start) // n)
        else:
            cycle = permutation(n, "mixture", seed, number)
            groups = np.sort(cycle[np.arange(start, stop) % n])
        chosen.append(groups)
    order = row_group_order(sum(map(len, chosen)), seed, epoch)
    return EpochOrder(order=order, groups=tuple(chosen))


def mixture_facts(parts: tuple[Part, ...]) -> list[dict[str, JsonValue]]:
    """Return the facts of the sets mixed in, for comparison with an earlier run."""
    return [
        {
            "identity": part.labels.manifest.identity_digest,
            "content": part.labels.content_digest,
            "weight": part.weight,
        }
        for part in parts[1:]
    ]
