"""Sampled labels on disk: counting, the round trip, and verification."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas import PAD_ID, Labels, decode, encode, validate_table
from schemas.draws import count_draws, misfits
from tests.schemas.samples import random_labels, table

N = 20


@given(st.integers(0, 6), st.integers(1, 30), st.integers(1, 9), st.integers(0, 1000))
def test_count_draws(n: int, draws: int, vocab: int, seed: int) -> None:
    drawn = np.sort(np.random.default_rng(seed).integers(0, vocab, (n, draws)), axis=1)
    ids, counts = count_draws(drawn.astype(np.int32))
    for row, some, times in zip(drawn, ids, counts, strict=True):
        assert dict(zip(some[some != PAD_ID], times[some != PAD_ID])) == Counter(row.tolist())
        assert (times[some == PAD_ID] == 0).all()


def with_draws(n: int, k: int, vocab: int, *, seed: int = 0) -> Labels:
    """Return random labels with draw counts next to N p."""
    labels = random_labels(n, vocab, vocab, seed=seed)
    p = np.exp(labels.topk_logprobs.astype(np.float64))
    counts = np.floor(N * p).astype(np.int64)
    missing = N - counts.sum(axis=1)
    # The ids with the largest fractions get one more draw.
    order = np.argsort(-(N * p - counts), axis=1)
    for row, some in enumerate(missing):
        counts[row, order[row, :some]] += 1
    drawn = [np.sort(np.repeat(ids, c)) for ids, c in zip(labels.topk_ids, counts)]
    sample_ids, sample_counts = count_draws(np.array(drawn, np.int32).reshape(n, N))
    rest = 1 - p[:, :k].sum(axis=1)
    return replace(
        labels,
        topk_ids=labels.topk_ids[:, :k],
        topk_logprobs=labels.topk_logprobs[:, :k],
        tail_logprob=np.log(np.maximum(rest, 1e-9)).astype(np.float32),
        sample_ids=sample_ids,
        sample_counts=sample_counts,
    )


def test_round_trip() -> None:
    rows = [with_draws(n, 4, 30, seed=n) for n in (3, 1, 5)]
    back = decode(table(rows, vocab_size=30)).labels
    assert back.sample_ids is not None
    assert back.sample_counts is not None
    at = 0
    for labels in rows:
        assert labels.sample_ids is not None
        assert labels.sample_counts is not None
        width = labels.sample_ids.shape[1]
        part = slice(at, at := at + len(labels))
        np.testing.assert_array_equal(back.sample_ids[part, :width], labels.sample_ids)
        np.testing.assert_array_equal(back.sample_counts[part, :width], labels.sample_counts)
        assert (back.sample_ids[part, width:] == PAD_ID).all()
    mixed = decode(table([rows[0], random_labels(2, 4, 30)], vocab_size=30)).labels
    assert mixed.sample_ids is None, "not every row has draws"


def test_counts_that_cannot_be_stored_are_refused() -> None:
    labels = with_draws(3, 4, 30)
    assert labels.sample_counts is not None
    for count in (0, 1 << 16):
        wrong = replace(labels, sample_counts=np.where(labels.sample_counts, count, 0))
        with pytest.raises(ValueError, match="a count outside"):
            encode([wrong], 30)


def changed(labels: Labels, how: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    assert labels.sample_ids is not None
    assert labels.sample_counts is not None
    ids, counts = labels.sample_ids.copy(), labels.sample_counts.copy()
    if how == "one more":
        counts[1, 0] += 1
    elif how == "two swapped":
        ids[1, :2] = ids[1, 1::-1]
    elif how == "from another position":
        ids[[0, 1]], counts[[0, 1]] = ids[[1, 0]], counts[[1, 0]]
    elif how == "not a token":
        ids[1, (ids[1] != PAD_ID).sum() - 1] = 30
    return ids, counts


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("", None),
        ("one more", "the drawn ids do not fit the top-k"),
        ("two swapped", "the drawn ids do not fit the top-k"),
        ("from another position", "the drawn ids do not fit the top-k (2 labels in 1 row)"),
    ],
)
def test_draws_are_verified(how: str, message: str | None) -> None:
    labels = with_draws(6, 4, 30, seed=3)
    ids, counts = changed(labels, how)
    wrong = replace(labels, sample_ids=ids, sample_counts=counts)
    assert misfits(labels, N, 1e-3).sum() == 0
    rows = table([wrong], vocab_size=30)
    found = [f for f in validate_table(rows, vocab_size=30, k=4, draws=N) if f.kind == "draws"]
    assert [f.what for f in found] == ([message] if message else [])


def test_draws_and_manifest_must_agree() -> None:
    rows = table([with_draws(6, 4, 30)], vocab_size=30)
    (found,) = (f for f in validate_table(rows, vocab_size=30, k=4) if f.kind == "draws")
    assert "the manifest says no draws" in found.what
    none = table([random_labels(6, 4, 30)], vocab_size=30)
    (found,) = (f for f in validate_table(none, vocab_size=30, k=4, draws=N) if f.kind == "draws")
    assert "the manifest says 20 draws per position" in found.what
