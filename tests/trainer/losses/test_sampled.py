"""Labels drawn from the teacher: unbiased, and safe where nothing was drawn."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.losses.dense import DENSE
from trainer.losses import sampled_cross_entropy
from trainer.ops import linear_label_logprobs


def test_equals_the_mean_over_draws() -> None:
    logp = torch.randn(2, 3, dtype=torch.float64).log_softmax(1)
    counts = torch.tensor([[2, 0, 1], [0, 4, 0]])
    want = [-(2 * logp[0, 0] + logp[0, 2]) / 3, -logp[1, 1]]
    torch.testing.assert_close(sampled_cross_entropy(counts, logp), torch.stack(want))


def test_gradient_averages_to_that_of_the_dense_kl() -> None:
    """Real draws of 8 tokens per position, stored as unique ids and counts, through the op."""
    draws, n_samples, d, v = 4000, 8, 3, 12
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(v, d, generator=gen, dtype=torch.float64)
    state = torch.randn(d, generator=gen, dtype=torch.float64)
    teacher = (2 * torch.randn(v, generator=gen, dtype=torch.float64)).softmax(0)
    drawn = torch.multinomial(teacher.expand(draws, v), n_samples, replacement=True, generator=gen)
    all_counts = torch.zeros(draws, v, dtype=torch.int64)
    all_counts.scatter_add_(1, drawn, torch.ones_like(drawn))
    counts, ids = all_counts.topk(n_samples, dim=1)
    ids = ids.masked_fill(counts == 0, -1)
    assert (ids < 0).any()  # ragged, as sampled labels are

    hidden = state.expand(draws, d).clone().requires_grad_()
    logp, _, _ = linear_label_logprobs(hidden, weight, ids)
    (grads,) = torch.autograd.grad(sampled_cross_entropy(counts, logp).sum(), hidden)
    x = state.clone()[None].requires_grad_()
    dense = DENSE["forward_kl"](teacher[None], (x @ weight.T).softmax(1))
    (want,) = torch.autograd.grad(dense.sum(), x)
    error = grads.std(0) / draws**0.5  # of the mean
    assert ((grads.mean(0) - want[0]).abs() < 4 * error).all()
    assert (error * 10 < want[0].abs().max()).all()  # tight enough to tell
    assert (grads.std(0) > want[0].abs().max() / 10).any()  # single draws do differ


def test_no_draws_and_padding_cost_nothing() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -torch.inf]], requires_grad=True)
    loss = sampled_cross_entropy(torch.tensor([[0, 0], [3, 0]]), logp)
    assert loss.tolist() == [0.0, 0.5]
    assert torch.autograd.grad(loss.sum(), logp)[0].tolist() == [[0.0, 0.0], [-1.0, 0.0]]
    assert sampled_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert sampled_cross_entropy(torch.ones(2, 1), torch.zeros(2, 1).half()).dtype == torch.float32


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same ids"):
        sampled_cross_entropy(torch.ones(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="floating"):
        sampled_cross_entropy(torch.ones(2, 3), torch.zeros(2, 3).long())
