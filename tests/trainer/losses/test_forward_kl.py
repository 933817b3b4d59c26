"""Forward KL by hand: its formula, its gradient, and empty buckets."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer.losses.dense import buckets, log_rows
from trainer.losses import forward_kl

INF = math.inf


def test_equals_the_formula_bucket_by_bucket() -> None:
    teacher, student = log_rows(5, 12, 0), log_rows(5, 12, 1)
    got = forward_kl(*buckets(teacher, 4), *buckets(student, 4))
    for row, value in enumerate(got.tolist()):
        t, p = ([*x[row, :4].exp().tolist()] for x in (teacher, student))
        t, p = [*t, 1 - sum(t)], [*p, 1 - sum(p)]
        want = sum(a * math.log(a / b) for a, b in zip(t, p, strict=True))
        assert abs(value - want) < 1e-12


def test_gradient_is_minus_the_teacher() -> None:
    teacher, student = log_rows(5, 12, 0), log_rows(5, 12, 1)
    logp, log_rest = (x.clone().requires_grad_() for x in buckets(student, 4))
    t, tail = buckets(teacher, 4)
    grads = torch.autograd.grad(forward_kl(t, tail, logp, log_rest).sum(), [logp, log_rest])
    torch.testing.assert_close(grads[0], -t.exp())
    torch.testing.assert_close(grads[1], -tail.exp())


def test_empty_buckets_cost_nothing() -> None:
    """0 log 0 = 0 in value and gradient: padding on both sides, and k = V on both sides."""
    teacher, student = log_rows(3, 6, 4), log_rows(3, 6, 5)
    pad = torch.full((3, 2), -INF, dtype=torch.float64)
    none = torch.full((3,), -INF, dtype=torch.float64)
    logp = torch.cat([student, pad], 1).requires_grad_()
    log_rest = none.clone().requires_grad_()
    got = forward_kl(torch.cat([teacher, pad], 1), none, logp, log_rest)
    torch.testing.assert_close(got, (teacher.exp() * (teacher - student)).sum(1))
    grads = torch.autograd.grad(got.sum(), [logp, log_rest])
    torch.testing.assert_close(grads[0], torch.cat([-teacher.exp(), 0 * pad.exp()], 1))
    assert (grads[1] == 0).all()


def test_student_mass_without_teacher_mass_is_free_on_its_bucket() -> None:
    """tau = 0 with r > 0 adds no term; the ids pay for the mass that r took from them."""
    teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.25]], dtype=torch.float64).log()
    none, half = torch.tensor([-INF], dtype=torch.float64), torch.tensor([0.5]).double().log()
    got = forward_kl(teacher, none, student, half)
    assert got.item() == pytest.approx(math.log(2), abs=1e-12)


def test_teacher_mass_without_student_mass_is_infinite_with_finite_gradient() -> None:
    t, tail = torch.tensor([[0.75, 0.0], [0.75, 0.25]]).log(), torch.tensor([0.25, 0.0]).log()
    logp = torch.tensor([[0.75, 0.25], [1.0, 0.0]]).log().requires_grad_()
    log_rest = torch.full((2,), -INF, requires_grad=True)
    loss = forward_kl(t, tail, logp, log_rest)
    assert loss.tolist() == [INF, INF]
    grads = torch.autograd.grad(loss.sum(), [logp, log_rest])
    torch.testing.assert_close(grads[0], torch.tensor([[-0.75, 0.0], [-0.75, -0.25]]))
    torch.testing.assert_close(grads[1], torch.tensor([-0.25, 0.0]))
