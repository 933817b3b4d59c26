from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from labeler.labeling.engines.capture import CaptureError, derived_tail, flat_rows, labels_from_rows
from schemas import PAD_ID


@dataclass
class Flat:
    """The four lists of vLLM's FlatLogprobs that the labeler reads."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def add(self, ids: list[int], logprobs: list[float]) -> None:
        self.start_indices.append(len(self.token_ids))
        self.token_ids += ids
        self.logprobs += logprobs
        self.end_indices.append(len(self.token_ids))


def test_flat_rows_skips_the_empty_first_position() -> None:
    flat = Flat()
    flat.add([], [])
    flat.add([5, 1, 2], [-3.0, -1.0, -2.0])
    flat.add([1, 1, 4], [-0.5, -0.5, -2.0])
    ids, logprobs = flat_rows(flat, skip=1)
    assert ids.tolist() == [[5, 1, 2], [1, 1, 4]]
    assert logprobs.tolist() == [[-3.0, -1.0, -2.0], [-0.5, -0.5, -2.0]]


def test_flat_rows_of_unequal_width_are_refused() -> None:
    flat = Flat()
    flat.add([5, 1], [-3.0, -1.0])
    flat.add([5], [-3.0])
    with pytest.raises(CaptureError, match="unequal width"):
        flat_rows(flat)
    with pytest.raises(CaptureError, match="unequal width"):
        flat_rows(flat, skip=1)


def rows(vocab: int = 30, n: int = 6, k: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, vocab)) * 2
    logp = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    tokens = rng.integers(0, vocab, n).astype(np.int32)
    order = np.argsort(-logp, axis=1)[:, :k]
    ids = np.concatenate([tokens[:, None], order], axis=1).astype(np.int32)
    return ids, np.take_along_axis(logp, ids.astype(np.int64), axis=1), tokens


def test_column_zero_is_not_part_of_the_top_k() -> None:
    ids, logprobs, tokens = rows()
    labels = labels_from_rows(ids, logprobs, tokens, k=8, vocab_size=30)
    np.testing.assert_array_equal(labels.topk_ids, ids[:, 1:])
    np.testing.assert_array_equal(labels.token_logprob, logprobs[:, 0])
    mass = np.exp(labels.topk_logprobs).sum(1) + np.exp(labels.tail_logprob)
    np.testing.assert_allclose(mass, 1, atol=1e-6)


def test_shifted_rows_are_refused() -> None:
    ids, logprobs, tokens = rows()
    with pytest.raises(CaptureError, match="shifted"):
        labels_from_rows(ids, logprobs, np.roll(tokens, 1), k=8, vocab_size=30)
    with pytest.raises(CaptureError, match="returned 6 positions, expected 5"):
        labels_from_rows(ids, logprobs, tokens[:5], k=8, vocab_size=30)
    logprobs[3, 2] = np.nan
    with pytest.raises(CaptureError, match="NaN"):
        labels_from_rows(ids, logprobs, tokens, k=8, vocab_size=30)


def test_padded_ids_are_dropped_and_k_real_ones_remain() -> None:
    ids, logprobs, tokens = rows(k=12)
    tokens = np.minimum(tokens, 19).astype(np.int32)
    ids[:, 0] = tokens
    labels = labels_from_rows(ids, logprobs, tokens, k=6, vocab_size=20)
    assert labels.topk_ids.shape == (6, 6)
    assert labels.topk_ids.max() < 20
    for row, (mine, theirs) in enumerate(zip(labels.topk_ids, ids[:, 1:], strict=True)):
        real = [i for i in theirs if i < 20][:6]
        assert [i for i in mine if i != PAD_ID] == real, row


def test_tail_is_clamped_and_never_below_the_actual_token() -> None:
    ids = np.array([[0, 1], [0, 1], [0, 1]], np.int32)
    logprobs = np.log(np.array([[0.6, 0.4], [0.6, 0.3], [0.6, 0.4]], np.float32))
    tokens = np.array([0, 0, 7], np.int32)
    token_logprob = np.log(np.array([0.6, 0.6, 1e-3], np.float32))
    tail = np.exp(derived_tail(ids, logprobs, tokens, token_logprob, 30))
    np.testing.assert_allclose(tail, [1e-6, 0.1, 1e-3], rtol=1e-4)
    # Where the ids are the whole vocabulary, only padding of the head is outside, or nothing.
    covered = np.exp(derived_tail(ids, logprobs, tokens, token_logprob, 2))
    np.testing.assert_allclose(covered, [0.0, 0.1, 0.0], rtol=1e-4)
