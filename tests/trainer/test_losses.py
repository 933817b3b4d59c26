"""The bucketed losses against dense float64 references and at their edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from trainer.losses import cross_entropy, forward_kl, renormalise_teacher

INF = math.inf


def rows(n: int, v: int, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, v, generator=gen, dtype=torch.float64)).log_softmax(1)


def buckets(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k ids one by one, and the rest as one (-inf where nothing is left)."""
    return log_p[:, :k], torch.logsumexp(log_p[:, k:], 1)


def test_equals_the_formula_bucket_by_bucket() -> None:
    teacher, student = rows(5, 12, 0), rows(5, 12, 1)
    got = forward_kl(*buckets(teacher, 4), *buckets(student, 4))
    for row, value in enumerate(got.tolist()):
        t, p = ([*x[row, :4].exp().tolist()] for x in (teacher, student))
        t, p = [*t, 1 - sum(t)], [*p, 1 - sum(p)]
        want = sum(a * math.log(a / b) for a, b in zip(t, p, strict=True))
        assert abs(value - want) < 1e-12


def test_gradient_is_minus_the_teacher() -> None:
    teacher, student = rows(5, 12, 0), rows(5, 12, 1)
    logp, log_rest = (x.clone().requires_grad_() for x in buckets(student, 4))
    t, tail = buckets(teacher, 4)
    grads = torch.autograd.grad(
        forward_kl(t, tail, logp, log_rest).sum(), [logp, log_rest]
    )
    torch.testing.assert_close(grads[0], -t.exp())
    torch.testing.assert_close(grads[1], -tail.exp())


def test_never_above_dense_and_monotone_in_nested_ids() -> None:
    """Log-sum inequality: splitting the tail can only raise the KL, up to the dense one."""
    v = 16
    teacher, student = rows(64, v, 2), rows(64, v, 3)
    dense = (teacher.exp() * (teacher - student)).sum(1)
    values = [
        forward_kl(*buckets(teacher, k), *buckets(student, k)) for k in range(v + 1)
    ]
    for fewer, more in itertools.pairwise(values):
        assert (more - fewer).min() >= -1e-12
    assert values[0].abs().max() <= 1e-12  # one bucket holds everything on both sides
    assert (dense - values[4]).min() > 1e-3  # a strict bound here
    torch.testing.assert_close(values[v - 1], dense)
    torch.testing.assert_close(values[v], dense)


def test_empty_buckets_owe_nothing() -> None:
    """0 log 0 = 0 in value and gradient: padding on both sides, and k = V on both sides."""
    teacher, student = rows(3, 6, 4), rows(3, 6, 5)
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
    """tau = 0 with r > 0: no term of its own, the ids pay for the mass that r took from them."""
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


def test_stored_dtypes_are_widened_before_any_math() -> None:
    logp, tail = (x.half() for x in buckets(rows(8, 12, 6), 4))
    student, rest = buckets(rows(8, 12, 7), 4)
    got = forward_kl(logp, tail, student.float(), rest.float())
    want = forward_kl(logp.double(), tail.double(), student, rest)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    low = forward_kl(logp, tail, student.bfloat16(), rest.bfloat16())
    assert low.dtype == torch.float32


def test_renormalised_float16_rows_sum_to_one() -> None:
    logp, tail = (x.half() for x in buckets(rows(256, 128, 8), 64))
    before = logp.double().exp().sum(1) + tail.double().exp()
    new_logp, new_tail = renormalise_teacher(logp, tail)
    after = new_logp.double().exp().sum(1) + new_tail.double().exp()
    assert (before - 1).abs().max() > 1e-5  # what rounding had done
    assert (after - 1).abs().max() < 1e-6
    assert new_logp.dtype == new_tail.dtype == torch.float32
    # One shift a row: differences between buckets, which are what was stored, stay as they were.
    shift = new_logp - logp.float()
    torch.testing.assert_close(
        shift, (new_tail - tail.float())[:, None].expand_as(shift), atol=2e-6, rtol=0
    )


def test_renormalised_teacher_has_no_negative_kl() -> None:
    logp, tail = buckets(rows(256, 128, 9), 64)
    stored, stored_tail = logp.half().double(), tail.half().double()
    raw = forward_kl(stored, stored_tail, logp, tail)
    fixed = forward_kl(*renormalise_teacher(stored, stored_tail), logp, tail)
    assert raw.min() < -1e-6  # not a KL: its rows do not sum to one
    assert fixed.min() >= -1e-12
    assert fixed.max() < 1e-6


def test_renormalise_keeps_padding_and_an_empty_tail() -> None:
    logp = torch.tensor([[-0.5, -1.0, -INF], [-0.1, -INF, -INF]])
    new_logp, new_tail = renormalise_teacher(logp, torch.tensor([-INF, -2.0]))
    assert torch.equal(new_logp == -INF, logp == -INF)
    assert new_tail[0] == -INF
    torch.testing.assert_close(new_logp.exp().sum(1) + new_tail.exp(), torch.ones(2))


@pytest.mark.parametrize(
    "bad", [[-INF, -INF, -INF], [math.nan, -1.0, -1.0], [-1.0, -1.0, math.nan], [INF, -1.0, -1.0]]
)
def test_renormalise_refuses_rows_that_are_no_distribution(bad: list[float]) -> None:
    values = torch.tensor([[-1.0, -1.0, -1.0], bad])
    with pytest.raises(ValueError, match="1 of 2 teacher rows have no mass, NaN or"):
        renormalise_teacher(values[:, :2], values[:, 2])


def test_cross_entropy_is_the_negative_target_logprob() -> None:
    x = torch.tensor([-0.5, -2.0], requires_grad=True)
    loss = cross_entropy(x)
    assert loss.tolist() == [0.5, 2.0]
    assert torch.autograd.grad(loss.sum(), x)[0].tolist() == [-1.0, -1.0]


def test_no_positions() -> None:
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    assert forward_kl(empty, none, empty, none).shape == (0,)
    assert [x.shape for x in renormalise_teacher(empty, none)] == [(0, 4), (0,)]
    assert cross_entropy(none).shape == (0,)


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    a, one = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match="same ids"):
        forward_kl(a, one, torch.zeros(3, 5), one)
    with pytest.raises(ValueError, match="teacher_log_tail"):
        forward_kl(a, a, a, one)
    with pytest.raises(ValueError, match="log_rest"):
        forward_kl(a, one, a, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="floating"):
        renormalise_teacher(a.long(), one)
    with pytest.raises(ValueError, match="target_logp"):
        cross_entropy(a)
