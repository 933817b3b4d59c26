"""The order in which an epoch visits a label set: pure functions of (seed, epoch, window).

Row groups are shuffled over the whole set, cut into windows of a few row groups, and rows are
permuted inside their window. A reader therefore holds one window in memory and can start at any
window without reading what came before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

LARGEST_PACKED = 1 << 21
"""Most numbers that are sorted in one word with their index: beyond, the rest of it has ties."""


def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """Return a permutation of range(n) that depends on `key` alone, whatever platform and NumPy.

    NumPy promises stable raw streams of its bit generators, but not a stable `shuffle` or
    `permutation`: so sort raw Philox words, and ties (which do not occur in practice) by index.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    key_of_stream = int.from_bytes(digest[:16], "little")
    words = np.random.Philox(key=key_of_stream).random_raw(n)
    if n > LARGEST_PACKED:
        return np.argsort(words, kind="stable")
    # With an index in place of each word's lowest bits, the words are sorted without an `argsort`,
    # in half the time. The order is the same unless two words differ in these bits alone.
    low = np.uint64((1 << n.bit_length()) - 1)
    words &= ~low
    words |= np.arange(n, dtype=np.uint64)
    words.sort()
    if ((words[1:] ^ words[:-1]) <= low).any():
        return np.argsort(np.random.Philox(key=key_of_stream).random_raw(n), kind="stable")
    words &= low
    return words.view(np.int64)


def row_group_order(n_groups: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of all row groups in an epoch."""
    return permutation(n_groups, "row groups", seed, epoch)


class Visits(Protocol):
    """The row groups that an epoch visits, in order: an array [n, ...], or what looks them up."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: slice, /) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Windows(Sequence[NDArray[np.int64]]):
    """An order in windows of `size` row groups; the last may be smaller."""

    order: Visits
    size: int

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    @overload
    def __getitem__(self, at: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, at: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, at: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        start = range(len(self))[at] * self.size  # negative ones count from the end, IndexError
        return self.order[start : start + self.size]


def row_order(n_rows: int, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the order of a window's rows, which are numbered in the order of its row groups."""
    return permutation(n_rows, "rows", seed, epoch, window)


def pack_order(n_packs: int, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the order of a window's packs: packing sorts them by length, and this undoes it."""
    return permutation(n_packs, "packs", seed, epoch, window)
