from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import cut_windows, pack_order, permutation, row_group_order, row_order


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 50))
def test_every_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    for order in (row_group_order(n, seed, epoch), row_order(n, seed, epoch, 3)):
        assert sorted(order.tolist()) == list(range(n))


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
    order = row_group_order(11, 0, 0)
    windows = cut_windows(order, 4)
    assert [len(window) for window in windows] == [4, 4, 3]
    assert np.array_equal(np.concatenate(windows), order)
