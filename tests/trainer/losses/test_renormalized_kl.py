"""The renormalized top-k: temperature, its square, and its blind spot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.dense import log_rows
from trainer.losses import renormalized_kl
from trainer.ops import linear_label_logprobs


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_equals_the_formula_on_logits(temperature: float) -> None:
    """Log-probabilities stored at T = 1 give the same loss as logits at T."""
    gen = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 6, 20, generator=gen, dtype=torch.float64) * 3
    q, p = ((z[:, :5] / temperature).softmax(1) for z in (teacher, student))
    want = temperature**2 * (q * (q / p).log()).sum(1)
    got = renormalized_kl(
        teacher.log_softmax(1)[:, :5], student.log_softmax(1)[:, :5], temperature=temperature
    )
    torch.testing.assert_close(got, want)


def test_finite_differences_at_temperature_two() -> None:
    """Central differences of T^2 KL written out on logits against the op's and loss's gradient: a
    wrong power of T in either would show as a factor."""
    n, d, v, k = 5, 4, 19, 6
    gen = torch.Generator().manual_seed(1)
    weight = torch.randn(v, d, generator=gen, dtype=torch.float64)
    hidden = torch.randn(n, d, generator=gen, dtype=torch.float64, requires_grad=True)
    ids = torch.rand(n, v, generator=gen).argsort(1)[:, :k]
    teacher = 3 * torch.randn(n, v, generator=gen, dtype=torch.float64)
    logp, _, _ = linear_label_logprobs(hidden, weight, ids)
    loss = renormalized_kl(teacher.log_softmax(1).gather(1, ids), logp, temperature=2.0)
    (grad,) = torch.autograd.grad(loss.sum(), hidden)

    def written_out(x: Tensor) -> Tensor:
        q = (teacher.gather(1, ids) / 2).softmax(1)
        p = ((x @ weight.T).gather(1, ids) / 2).softmax(1)
        return 4 * (q * (q / p).log()).sum()

    step = 1e-6
    numeric = torch.zeros_like(grad)
    with torch.no_grad():
        for place in range(n * d):
            delta = torch.zeros(n * d, dtype=torch.float64)
            delta[place] = step
            delta = delta.view(n, d)
            up, down = written_out(hidden + delta), written_out(hidden - delta)
            numeric.view(-1)[place] = (up - down) / (2 * step)
    torch.testing.assert_close(loss.sum(), written_out(hidden))
    torch.testing.assert_close(grad, numeric, atol=1e-7, rtol=1e-6)
    assert grad.abs().max() > 0.1


def test_gradients_keep_their_size_over_temperature() -> None:
    """T squared keeps gradients in scale: without it, T = 4 would give a sixteenth."""
    teacher, logp = log_rows(64, 8, 0), log_rows(64, 8, 1).requires_grad_()
    sizes = [
        torch.autograd.grad(renormalized_kl(teacher, logp, temperature=t).sum(), logp)[0].norm()
        for t in (1.0, 4.0)
    ]
    assert 0.3 < sizes[1] / sizes[0] < 3


def test_does_not_see_mass_outside_the_ids() -> None:
    """The reason for the warning: moving nine tenths of the mass off the ids costs nothing."""
    teacher, student = log_rows(3, 6, 0), log_rows(3, 6, 1)
    moved = student + math.log(0.1)
    torch.testing.assert_close(renormalized_kl(teacher, moved), renormalized_kl(teacher, student))


def test_equal_sides_and_padding_cost_nothing() -> None:
    teacher = log_rows(3, 6, 0)
    student = teacher.clone().requires_grad_()
    loss = renormalized_kl(teacher, student, temperature=2.0)
    assert loss.abs().max() < 1e-14
    assert torch.autograd.grad(loss.sum(), student)[0].abs().max() < 1e-14
    pad = torch.full((3, 2), -math.inf, dtype=torch.float64)
    student = log_rows(3, 6, 1)
    padded = torch.cat([student, pad], 1).requires_grad_()
    got = renormalized_kl(torch.cat([teacher, pad], 1), padded)
    torch.testing.assert_close(got, renormalized_kl(teacher, student))
    assert torch.autograd.grad(got.sum(), padded)[0].isfinite().all()
    nothing = pad.clone().requires_grad_()
    loss = renormalized_kl(pad, nothing)
    assert (loss == 0).all()
    assert (torch.autograd.grad(loss.sum(), nothing)[0] == 0).all()
    assert renormalized_kl(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_invalid_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        renormalized_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)
    with pytest.raises(ValueError, match="same ids"):
        renormalized_kl(torch.zeros(1, 2), torch.zeros(1, 3))
