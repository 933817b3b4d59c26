"""The order in which an epoch visits a label set: pure functions of (seed, epoch, window).

Row groups are shuffled over the whole set, cut into windows of a few row groups, and rows are
permuted inside their window. A reader therefore holds one window in memory and can start at any
window without reading what came before it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """Return a permutation of range(n) that depends on `key` alone, whatever platform and NumPy.

    NumPy promises stable raw streams of its bit generators, but not a stable `shuffle` or
    `permutation`: so sort raw Philox words, and ties (which do not occur in practice) by index.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    order = np.argsort(words)
    ordered = words[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(words, kind="stable")  # twice as slow
    return order.astype(np.int64)


def row_group_order(n_groups: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of all row groups in an epoch."""
    return permutation(n_groups, "row groups", seed, epoch)


def cut_windows(order: NDArray[np.int64], window: int) -> list[NDArray[np.int64]]:
    """Cut an order into windows of `window` row groups; the last may be smaller."""
    return [order[start : start + window] for start in range(0, len(order), window)]


def row_order(n_rows: int, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the order of a window's rows, which are numbered in the order of its row groups."""
    return permutation(n_rows, "rows", seed, epoch, window)


def pack_order(n_packs: int, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the order of a window's packs: packing sorts them by length, and this undoes it."""
    return permutation(n_packs, "packs", seed, epoch, window)
