from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.data import order
from trainer.data.order import Windows, pack_order, permutation, row_group_order, row_order


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 50))
def test_every_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    for found in (row_group_order(n, seed, epoch), row_order(n, seed, epoch, 3)):
        assert sorted(found.tolist()) == list(range(n))


def test_order_is_a_function_of_its_key_alone() -> None:
    np.random.seed(0)
    first = row_order(100, 1, 2, 3)
    np.random.seed(1)
    assert np.array_equal(first, row_order(100, 1, 2, 3))
    others = [row_order(100, *key) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    others.append(pack_order(100, 1, 2, 3))
    assert not any(np.array_equal(first, other) for other in others)


def test_order_is_frozen() -> None:
    """A change here breaks every checkpoint: the streams are part of the reader's state."""
    assert permutation(8, "rows", 0, 0, 0).tolist() == FROZEN


FROZEN = [6, 2, 3, 1, 4, 0, 5, 7]


def test_windows_tile_the_order() -> None:
    whole = row_group_order(11, 0, 0)
    windows = Windows(whole, 4)
    assert [len(window) for window in windows] == [4, 4, 3]
    assert np.array_equal(np.concatenate(list(windows)), whole)
    assert np.array_equal(windows[-1], whole[8:])
    assert [window.tolist() for window in windows[1:]] == [whole[4:8].tolist(), whole[8:].tolist()]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 255, 256, 257, 5000, order.LARGEST_PACKED + 1])
def test_order_is_that_of_the_raw_words(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every version sorted them, with and without the index in their lowest bits."""
    key = int.from_bytes(hashlib.sha256(repr(("rows", 7, 0, 1)).encode()).digest()[:16], "little")
    expected = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
    assert np.array_equal(row_order(n, 7, 0, 1), expected)
    monkeypatch.setattr(order, "LARGEST_PACKED", -1)
    assert np.array_equal(row_order(n, 7, 0, 1), expected)


def test_words_that_differ_in_their_lowest_bits_are_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = np.array([9 << 40, 5 << 40 | 3, 5 << 40 | 1, 5 << 40 | 3, 0], np.uint64)

    class Words:
        def __init__(self, key: int) -> None:
            pass

        def random_raw(self, n: int) -> NDArray[np.uint64]:
            return words[:n].copy()

    monkeypatch.setattr(np.random, "Philox", Words)
    assert permutation(5).tolist() == [4, 2, 1, 3, 0]
