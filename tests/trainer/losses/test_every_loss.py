"""Properties of every loss: gradients, the dense limit, the bound, and adversarial rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.dense import ALPHA, BETA, DENSE, OURS, buckets, buckets_at, log_rows
from trainer import losses
from trainer.ops import linear_label_logprobs

INF = math.inf
N, D, V, K = 3, 3, 7, 3
TEMPERATURES = (1.0, 2.0)
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def teacher_and_ids() -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(5)
    return log_rows(N, V, 4), torch.rand(N, V, generator=gen).argsort(1)[:, :K]


def calls() -> dict[str, tuple[float, Call]]:
    """Return each loss at each temperature it supports: the op's, and the loss of its outputs.

    A bucketed loss at T = 2 takes labels with a tail at T = 2, which no label set has but a dense
    teacher gives; cross-entropy is at T = 1 whatever the op's temperature.
    """
    teacher, ids = teacher_and_ids()
    t, _ = buckets_at(teacher, ids)
    counts = torch.tensor([[3, 0, 1], [1, 1, 1], [0, 0, 5]])
    made: dict[str, tuple[float, Call]] = {
        "renormalized_kl-T1": (1.0, lambda logp, *_: losses.renormalized_kl(t, logp)),
        "renormalized_kl-T2": (
            1.0,
            lambda logp, *_: losses.renormalized_kl(t, logp, temperature=2.0),
        ),
        "sampled": (1.0, lambda logp, *_: losses.sampled_cross_entropy(counts, logp)),
    }
    for temperature in TEMPERATURES:
        labels = buckets_at((teacher / temperature).log_softmax(1), ids)
        for name, loss in OURS.items():
            made[f"{name}-T{temperature:g}"] = (
                temperature,
                lambda logp, rest, _, loss=loss, labels=labels: loss(*labels, logp, rest),
            )
        made[f"cross_entropy-T{temperature:g}"] = (
            temperature,
            lambda *args: losses.cross_entropy(args[2]),
        )
    return made


def leaves(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (V, D), (V,))
    made = (torch.randn(*shape, generator=gen, dtype=torch.float64) for shape in shapes)
    hidden, weight, bias = (x.requires_grad_() for x in made)
    return hidden, weight, bias


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", calls())
def test_gradcheck_through_the_op(name: str, with_bias: bool, softcap: float | None) -> None:
    (temperature, loss), (_, ids) = calls()[name], teacher_and_ids()
    target = torch.tensor([0, 3, 6])
    hidden, weight, bias = leaves()

    def run(*inputs: Tensor) -> Tensor:
        logp, rest, target_logp = linear_label_logprobs(
            *inputs[:2], ids, target=target, softcap=softcap, temperature=temperature,
            bias=inputs[2] if with_bias else None, chunk_size=2,
        )  # fmt: skip
        assert target_logp is not None
        return loss(logp, rest, target_logp)

    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    assert torch.autograd.gradcheck(run, inputs)
    grads = torch.autograd.grad(run(*inputs).sum(), inputs)
    assert all(g.abs().max() > 1e-3 for g in grads)  # not a check of zeros


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [V, V - 1])
@pytest.mark.parametrize("name", OURS)
def test_equals_dense_where_buckets_lose_nothing(
    name: str, k: int, temperature: float, softcap: float | None
) -> None:
    """k = V has no tail, k = V - 1 a tail of one id: value and gradients are the dense ones."""
    teacher = (teacher_and_ids()[0] / temperature).log_softmax(1)
    hidden, weight, bias = leaves()
    ids = torch.rand(N, V, generator=torch.Generator().manual_seed(8)).argsort(1)[:, :k]
    logp, rest, _ = linear_label_logprobs(
        hidden, weight, ids, bias=bias, temperature=temperature, softcap=softcap
    )
    got = OURS[name](*buckets_at(teacher, ids), logp, rest)
    z = hidden @ weight.T + bias
    z = z if softcap is None else softcap * (z / softcap).tanh()
    want = DENSE[name](teacher.exp(), (z / temperature).softmax(1))
    assert want.min() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    pairs = (torch.autograd.grad(x.sum(), (hidden, weight, bias)) for x in (got, want))
    for g, w in zip(*pairs, strict=True):
        torch.testing.assert_close(g, w, atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_equals_dense_of_the_merged_distribution(name: str) -> None:
    """At any k: the dense formula, over a vocabulary in which the tail is one id."""
    teacher, student = log_rows(8, 12, 0), log_rows(8, 12, 1)
    merged = (
        torch.cat([x.exp()[:, :4], x.exp()[:, 4:].sum(1, keepdim=True)], 1)
        for x in (teacher, student)
    )
    got = OURS[name](*buckets(teacher, 4), *buckets(student, 4))
    torch.testing.assert_close(got, DENSE[name](*merged), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_never_above_dense_and_monotone_in_nested_ids(name: str) -> None:
    """Splitting the tail can only raise an f-divergence, up to the dense one."""
    v = 16
    teacher, student = log_rows(64, v, 2), log_rows(64, v, 3)
    dense = DENSE[name](teacher.exp(), student.exp())
    values = [OURS[name](*buckets(teacher, k), *buckets(student, k)) for k in range(v + 1)]
    for fewer, more in itertools.pairwise(values):
        assert (more - fewer).min() >= -1e-12
    assert values[0].abs().max() <= 1e-12  # one bucket holds everything on both sides
    assert (dense - values[4]).median() > 1e-3  # a strict bound here
    torch.testing.assert_close(values[v - 1], dense)
    torch.testing.assert_close(values[v], dense)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*OURS, "renormalized_kl"])
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(
    name: str, dtype: torch.dtype, temperature: float
) -> None:
    hidden, weight, bias = (x.detach().to(dtype).requires_grad_() for x in leaves())
    _, ids = teacher_and_ids()

    def loss(change: float) -> Tensor:
        """Take the student as teacher, with its log-probabilities of the ids times `change`."""
        of_losses = 1.0 if name == "renormalized_kl" else temperature
        logp, rest, _ = linear_label_logprobs(hidden, weight, ids, bias=bias, temperature=of_losses)
        teacher = logp.detach() * change
        if name == "renormalized_kl":
            return losses.renormalized_kl(teacher, logp, temperature=temperature)
        return OURS[name](teacher, rest.detach(), logp, rest)

    tolerance = 60 * torch.finfo(dtype).eps
    assert loss(1.0).abs().max() <= tolerance
    for grad in torch.autograd.grad(loss(1.0).sum(), (hidden, weight, bias)):
        assert grad.abs().max() <= tolerance
    assert torch.autograd.grad(loss(1.1).sum(), hidden)[0].abs().max() > 50 * tolerance


def test_draws_in_proportion_to_the_student_have_no_gradient() -> None:
    """Where both agree, a cross-entropy equals the entropy, but has no gradient."""
    hidden, weight, bias = leaves()
    ids = torch.arange(V).repeat(N, 1)
    logp, _, _ = linear_label_logprobs(hidden, weight, ids, bias=bias)
    loss = losses.sampled_cross_entropy(5 * logp.detach().exp(), logp)
    torch.testing.assert_close(loss, -(logp.exp() * logp).sum(1))
    for grad in torch.autograd.grad(loss.sum(), (hidden, weight, bias)):
        assert grad.abs().max() <= 1e-14


def test_mixtures_tend_to_the_kls() -> None:
    """The directions of beta and alpha: GKD's limits, and the skews' at alpha near 0."""
    buckets_of = (*buckets(log_rows(8, 12, 0), 4), *buckets(log_rows(8, 12, 1), 4))
    forward, reverse = losses.forward_kl(*buckets_of), losses.reverse_kl(*buckets_of)
    assert (forward - reverse).abs().min() > 1e-3
    for got, want in (
        (losses.jsd(*buckets_of, beta=1e-6) / 1e-6, forward),
        (losses.jsd(*buckets_of, beta=1 - 1e-6) / 1e-6, reverse),
        (losses.skew_kl(*buckets_of, alpha=1e-7), forward),
        (losses.skew_reverse_kl(*buckets_of, alpha=1e-7), reverse),
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


ADVERSARIAL: dict[str, tuple[list[float], list[float]]] = {
    "no tail on either side": ([0.75, 0.25, 0.0], [0.5, 0.5, 0.0]),
    "the teacher has no tail": ([0.75, 0.25, 0.0], [0.5, 0.25, 0.25]),
    "the student has no tail": ([0.5, 0.25, 0.25], [0.75, 0.25, 0.0]),
    "the student's rest is 1e-9": ([0.5, 0.25, 0.25], [0.75, 0.25 - 1e-9, 1e-9]),
    "the teacher's tail is 1e-9": ([0.75, 0.25 - 1e-9, 1e-9], [0.5, 0.25, 0.25]),
    "a padded id": ([0.75, 0.0, 0.25], [0.25, 0.0, 0.75]),
    "mass on different ids": ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    "the student's number underflows": ([0.5, 0.25, 0.25], [0.5, 1e-300, 0.5]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", ADVERSARIAL)
@pytest.mark.parametrize("name", OURS)
def test_adversarial_rows(name: str, row: str, dtype: torch.dtype) -> None:
    """Compare with the formula by hand, with 0 log 0 = 0; where it is infinite, expect no NaN."""
    q, p = ADVERSARIAL[row]
    want = by_hand(name, q, p)
    t, s = (torch.tensor([x], dtype=torch.float64).log().to(dtype) for x in (q, p))
    logp, rest = s[:, :2].requires_grad_(), s[:, 2].requires_grad_()
    got = OURS[name](t[:, :2], t[:, 2], logp, rest)
    assert got.item() == pytest.approx(want, rel=1e-5)
    grads = torch.cat([g.flatten() for g in torch.autograd.grad(got.sum(), [logp, rest])])
    assert not grads.isnan().any()
    if want < INF or name != "reverse_kl":
        assert grads.isfinite().all()
    if name in ("jsd", "skew_kl", "skew_reverse_kl", "tvd"):
        assert want < INF


def by_hand(name: str, q: list[float], p: list[float]) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        terms = (x * math.log(x / y) if y > 0 else INF for x, y in zip(a, b) if x > 0)
        return sum(terms)

    def mix(share: float) -> list[float]:
        return [share * x + (1 - share) * y for x, y in zip(q, p)]

    return {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jsd": lambda: BETA * kl(q, mix(BETA)) + (1 - BETA) * kl(p, mix(BETA)),
        "skew_kl": lambda: kl(q, mix(ALPHA)),
        "skew_reverse_kl": lambda: kl(p, mix(1 - ALPHA)),
        "tvd": lambda: sum(abs(x - y) for x, y in zip(q, p)) / 2,
    }[name]()


@pytest.mark.parametrize("name", OURS)
def test_tiny_rest_through_the_op_in_float32(name: str) -> None:
    """A student whose rest is about 1e-9, from float32 logits: value and gradient of float64."""
    n, v, k = 8, 4096, 8
    gen = torch.Generator().manual_seed(0)
    hidden = 0.1 * torch.randn(n, 4, generator=gen)
    weight, bias = torch.randn(v, 4, generator=gen), torch.randn(v, generator=gen)
    bias[:k] += 27.0  # exp(-27) * 4096 / 8 = 1e-9
    ids = torch.arange(k).expand(n, k)
    t, tail = buckets(log_rows(n, k + 3, 1), k)
    values, grads = [], []
    for dtype in (torch.float32, torch.float64):
        x = hidden.to(dtype).requires_grad_()
        logp, rest, _ = linear_label_logprobs(x, weight.to(dtype), ids, bias=bias.to(dtype))
        assert (rest.exp() < 1e-7).all()
        loss = OURS[name](t, tail, logp, rest)
        values.append(loss.double())
        grads.append(torch.autograd.grad(loss.sum(), x)[0].double())
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("name", OURS)
def test_logits_of_minus_infinity_through_the_op(name: str, softcap: float | None) -> None:
    """A head that forbids a labeled id and one other id acts as if their logits were -1e4."""
    teacher, ids = teacher_and_ids()
    t, tail = buckets_at(teacher, ids)
    found = []
    for low in (-INF, -1e4):
        hidden, weight, bias = leaves()
        with torch.no_grad():
            bias[ids[0, 0]] = low
            bias[next(i for i in range(V) if not (ids == i).any())] = low
        logp, rest, _ = linear_label_logprobs(hidden, weight, ids, bias=bias, softcap=softcap)
        assert not logp.isnan().any()
        assert rest.isfinite().all()
        loss = OURS[name](t, tail, logp, rest)
        assert not loss.isnan().any()
        assert loss.isfinite().all() or (name == "forward_kl" and softcap is None)
        found.append((loss, *torch.autograd.grad(loss.sum(), (hidden, weight))))
    for got, want in zip(*found, strict=True):
        finite = got.isfinite()  # the KL itself is infinite there, its gradient is not
        torch.testing.assert_close(got[finite], want[finite])
    assert all(grad.isfinite().all() for grad in found[0][1:])


@pytest.mark.parametrize("name", OURS)
def test_padded_ids_change_nothing(name: str) -> None:
    teacher, student = buckets(log_rows(5, 12, 0), 4), buckets(log_rows(5, 12, 1), 4)
    pad = torch.full((5, 2), -INF, dtype=torch.float64)
    logp = torch.cat([student[0], pad], 1).requires_grad_()
    got = OURS[name](torch.cat([teacher[0], pad], 1), teacher[1], logp, student[1])
    torch.testing.assert_close(got, OURS[name](*teacher, *student), atol=0, rtol=1e-14)
    (grad,) = torch.autograd.grad(got.sum(), logp)
    assert (grad[:, 4:] == 0).all()


@pytest.mark.parametrize("name", OURS)
def test_no_positions_and_stored_dtypes(name: str) -> None:
    empty, none = torch.zeros(0, 4), torch.zeros(0)
    logp = empty.clone().requires_grad_()
    loss = OURS[name](empty, none, logp, none)
    assert loss.shape == (0,)
    assert torch.autograd.grad(loss.sum(), logp)[0].shape == (0, 4)
    t, s = buckets(log_rows(8, 12, 6), 4), buckets(log_rows(8, 12, 7), 4)
    half = [x.half() for x in t]
    got = OURS[name](*half, *(x.float() for x in s))
    assert got.dtype == torch.float32
    want = OURS[name](*(x.double() for x in half), *s)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    assert OURS[name](*half, *(x.bfloat16() for x in s)).dtype == torch.float32


@pytest.mark.parametrize("name", OURS)
def test_invalid_inputs_are_refused(name: str) -> None:
    a, one = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match="same ids"):
        OURS[name](a, one, torch.zeros(3, 5), one)
    with pytest.raises(ValueError, match="teacher_log_tail"):
        OURS[name](a, a, a, one)
    with pytest.raises(ValueError, match="log_rest"):
        OURS[name](a, one, a, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="floating"):
        OURS[name](a.long(), one, a, one)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_mixing_weights_outside_the_open_interval_are_refused(share: float) -> None:
    four = (torch.zeros(1, 1), torch.zeros(1)) * 2
    with pytest.raises(ValueError, match="beta must be above 0 and below 1"):
        losses.jsd(*four, beta=share)
    for loss in (losses.skew_kl, losses.skew_reverse_kl):
        with pytest.raises(ValueError, match="alpha must be above 0 and below 1"):
            loss(*four, alpha=share)
