from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import SoftshardsError
from trainer.data.packing import batches_by_length, best_fit_decreasing, pack_window


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(0, 5))
def test_every_row_is_packed_once_within_budget(lengths: list[int], epoch: int) -> None:
    rows = np.array(lengths, dtype=np.int64)
    packs = pack_window(rows, 64, seed=1, epoch=epoch, window=0)
    assert sorted(np.concatenate([*packs, []]).tolist()) == list(range(len(rows)))
    assert all(rows[pack].sum() <= 64 for pack in packs)


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(0, 5))
def test_every_row_is_in_one_batch_within_budget(lengths: list[int], epoch: int) -> None:
    rows = np.array(lengths, dtype=np.int64)
    batches = pack_window(rows, 64, seed=1, epoch=epoch, window=0, padded=True)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(rows)))
    assert all(len(batch) * rows[batch].max() <= 64 for batch in batches)


def test_batches_hold_rows_of_similar_length() -> None:
    assert [batch.tolist() for batch in batches_by_length(np.array([3, 9, 4, 10, 5, 4]), 20)] == [
        [3, 1],
        [4, 2, 5, 0],
    ]
    lengths = np.random.default_rng(0).integers(20, 512, 2000)
    batches = batches_by_length(lengths, 2048)
    assert lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches) > 0.99


def test_packs_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 512, 2000)
    packs = best_fit_decreasing(lengths, 2048)
    assert lengths.sum() / (len(packs) * 2048) > 0.98


@pytest.mark.parametrize("padded", [False, True])
def test_packs_are_not_ordered_by_length(padded: bool) -> None:
    """Best fit puts the longest rows in the first packs; training must not see them first."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 100, 2000))
    packs = pack_window(lengths, 128, seed=0, epoch=0, window=0, padded=padded)
    longest = np.array([lengths[pack].max() for pack in packs], dtype=float)
    assert abs(np.corrcoef(longest, np.arange(len(packs)))[0, 1]) < 0.1


@pytest.mark.parametrize("padded", [False, True])
def test_epochs_pack_differently(padded: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    first, second = (
        {
            frozenset(pack.tolist())
            for pack in pack_window(lengths, 128, seed=0, epoch=e, window=0, padded=padded)
        }
        for e in (0, 1)
    )
    assert len(first & second) < len(first) / 2


@pytest.mark.parametrize("padded", [False, True])
def test_a_row_longer_than_the_budget_is_named(padded: bool) -> None:
    with pytest.raises(
        SoftshardsError, match=r"row essay/1: the row has 70 tokens(.|\n)*--pack-tokens 70"
    ):
        pack_window(
            np.array([3, 70]),
            64,
            seed=0,
            epoch=0,
            window=0,
            padded=padded,
            row_name=lambda row: f"essay/{row}",
        )
