"""Pack rows into sequences of a token budget, or pad them to it, from their lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from schemas.errors import SoftshardsError
from trainer.data.order import pack_order, row_order


def pack_window(
    lengths: NDArray[np.int64],
    budget: int,
    *,
    seed: int,
    epoch: int,
    window: int,
    padded: bool = False,
    row_name: Callable[[int], str] = str,
) -> list[NDArray[np.int64]]:
    """Return the packs of one window in training order, each an array of row numbers.

    Args:
        lengths: tokens of each row of the window [rows].
        budget: the maximum number of tokens in a pack.
        seed: decides the order, with the epoch and the window.
        epoch: counted from 0.
        window: counted from 0, within the epoch.
        padded: a pack is a padded batch, and its padding counts.
        row_name: gives the name of a row, for the error if it does not fit.

    Raises:
        SoftshardsError: a row is longer than the budget.
    """
    require_fit(lengths, budget, row_name)
    # Permuted before the stable sort by length, so that rows of one length mix anew each epoch.
    order = row_order(len(lengths), seed, epoch, window)
    divide = batches_by_length if padded else best_fit_decreasing
    packs = [order[pack] for pack in divide(lengths[order], budget)]
    return [packs[i] for i in pack_order(len(packs), seed, epoch, window)]


def require_fit(lengths: NDArray[np.int64], budget: int, row_name: Callable[[int], str]) -> None:
    """Refuse a row that is longer than a pack; see `pack_window`.

    Raises:
        SoftshardsError: names the first such row.
    """
    too_long = lengths > budget
    if too_long.any():
        row = int(np.argmax(too_long))
        raise SoftshardsError(
            f"the row has {int(lengths[row])} tokens and a pack holds {budget}",
            row=row_name(row),
            hint=f"pass --pack-tokens {int(lengths.max())} or more",
        )


def best_fit_decreasing(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Put each row, longest first, where it leaves the least room; open a pack if none has room.

    Deterministic: rows of one length go in the order given, and so do packs with equal room.
    """
    packs: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens -> packs with exactly that many
    sizes: list[int] = []  # the keys of `room` in ascending order
    for row in np.argsort(-lengths, kind="stable"):
        length = int(lengths[row])
        at = bisect_left(sizes, length)
        if at == len(sizes):
            pack, free = len(packs), budget
            packs.append([])
        else:
            free = sizes[at]
            pack = room[free].pop()
            if not room[free]:
                del room[free], sizes[at]
        packs[pack].append(int(row))
        left = free - length
        if left not in room:
            room[left] = []
            insort(sizes, left)
        room[left].append(pack)
    return [np.array(pack, dtype=np.int64) for pack in packs]


def batches_by_length(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cut rows, longest first, into batches: rows times the longest of them is within the budget.

    Deterministic: rows of one length stay in the order given.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    while len(order):
        count = max(1, budget // int(lengths[order[0]]))
        batches.append(order[:count].astype(np.int64))
        order = order[count:]
    return batches
