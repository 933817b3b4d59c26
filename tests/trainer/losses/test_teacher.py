"""Renormalization of stored labels, and cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer.losses.dense import buckets, log_rows
from trainer.losses import cross_entropy, forward_kl, renormalize_teacher

INF = math.inf


def test_renormalized_float16_rows_sum_to_one() -> None:
    logp, tail = (x.half() for x in buckets(log_rows(256, 128, 8), 64))
    before = logp.double().exp().sum(1) + tail.double().exp()
    new_logp, new_tail = renormalize_teacher(logp, tail)
    after = new_logp.double().exp().sum(1) + new_tail.double().exp()
    assert (before - 1).abs().max() > 1e-5  # the effect of rounding
    assert (after - 1).abs().max() < 1e-6
    assert new_logp.dtype == new_tail.dtype == torch.float32
    # One shift per row: differences between buckets, as stored, do not change.
    shift = new_logp - logp.float()
    torch.testing.assert_close(
        shift, (new_tail - tail.float())[:, None].expand_as(shift), atol=2e-6, rtol=0
    )


def test_renormalized_teacher_has_no_negative_kl() -> None:
    logp, tail = buckets(log_rows(256, 128, 9), 64)
    stored, stored_tail = logp.half().double(), tail.half().double()
    raw = forward_kl(stored, stored_tail, logp, tail)
    fixed = forward_kl(*renormalize_teacher(stored, stored_tail), logp, tail)
    assert raw.min() < -1e-6  # not a KL: its rows do not sum to one
    assert fixed.min() >= -1e-12
    assert fixed.max() < 1e-6


def test_renormalize_keeps_padding_and_an_empty_tail() -> None:
    logp = torch.tensor([[-0.5, -1.0, -INF], [-0.1, -INF, -INF]])
    new_logp, new_tail = renormalize_teacher(logp, torch.tensor([-INF, -2.0]))
    assert torch.equal(new_logp == -INF, logp == -INF)
    assert new_tail[0] == -INF
    torch.testing.assert_close(new_logp.exp().sum(1) + new_tail.exp(), torch.ones(2))


@pytest.mark.parametrize(
    "bad", [[-INF, -INF, -INF], [math.nan, -1.0, -1.0], [-1.0, -1.0, math.nan], [INF, -1.0, -1.0]]
)
def test_renormalize_refuses_rows_that_are_not_a_distribution(bad: list[float]) -> None:
    values = torch.tensor([[-1.0, -1.0, -1.0], bad])
    with pytest.raises(ValueError, match="1 of 2 teacher rows have no mass, NaN or"):
        renormalize_teacher(values[:, :2], values[:, 2])


def test_cross_entropy_is_the_negative_target_logprob() -> None:
    x = torch.tensor([-0.5, -2.0], requires_grad=True)
    loss = cross_entropy(x)
    assert loss.tolist() == [0.5, 2.0]
    assert torch.autograd.grad(loss.sum(), x)[0].tolist() == [-1.0, -1.0]


def test_no_positions_and_invalid_shapes() -> None:
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    assert [x.shape for x in renormalize_teacher(empty, none)] == [(0, 4), (0,)]
    assert cross_entropy(none).shape == (0,)
    with pytest.raises(ValueError, match="floating"):
        renormalize_teacher(torch.zeros(3, 4).long(), torch.zeros(3))
    with pytest.raises(ValueError, match="target_logp"):
        cross_entropy(torch.zeros(3, 4))
