"""The linear + label op against dense float64 references, finite differences and its own edges."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trainer.losses import cross_entropy, forward_kl
from trainer.ops import chunked, label_logprobs, linear_label_logprobs, products

N, D, V, K = 7, 5, 23, 4


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    ids: Tensor
    target: Tensor


def make_case(
    n: int = N,
    d: int = D,
    v: int = V,
    k: int = K,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    gen = torch.Generator().manual_seed(seed)
    real = (torch.randn(*shape, generator=gen, dtype=torch.float64) for shape in ((n, d), (v, d)))
    hidden, weight = (x.to(dtype).requires_grad_() for x in real)
    bias = torch.randn(v, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.rand(n, v, generator=gen).argsort(1)[:, :k]
    target = torch.randint(v, (n,), generator=gen)
    if n > 1 and 0 < k < v:
        target[0] = ids[0, 0]  # one target among the ids, and one outside
        target[1] = next(t for t in range(v) if t not in ids[1].tolist())
    return Case(hidden, weight, bias, ids, target)


def dense(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    target: Tensor | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The docstring's formula with materialised logits, in float64, by plain autograd."""
    z = hidden.double() @ weight.double().T
    z = z if bias is None else z + bias.double()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature).log_softmax(1)
    rest = torch.ones_like(z, dtype=torch.bool).scatter(1, ids, False)
    log_rest = log_p.masked_fill(~rest, -math.inf).logsumexp(1)
    ce = None if target is None else z.log_softmax(1).gather(1, target[:, None])[:, 0]
    return log_p.gather(1, ids), log_rest, ce


def mixed_loss(outputs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    """A scalar in which every output has its own weight, so that no gradient term can hide."""
    parts = [x.double() for x in outputs if x is not None]
    weights = [torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view(x.shape) for x in parts]
    return sum((w * x).sum() for w, x in zip(weights, parts, strict=True))  # type: ignore[return-value]


SETTINGS = [
    pytest.param({"temperature": t, "softcap": c}, b, g, id=f"T{t:g}-cap{c}-bias{b}-target{g}")
    for t, c, b, g in itertools.product((1.0, 2.0), (None, 3.0), (False, True), (False, True))
]


def extras(case: Case, with_bias: bool, with_target: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {"bias": case.bias} if with_bias else {}
    return extra | ({"target": case.target} if with_target else {})


@pytest.mark.parametrize(("settings", "with_bias", "with_target"), SETTINGS)
def test_values_and_gradients_equal_dense(
    settings: dict[str, Any], with_bias: bool, with_target: bool
) -> None:
    case = make_case()
    kwargs = settings | extras(case, with_bias, with_target)
    leaves = [case.hidden, case.weight] + ([case.bias] if with_bias else [])
    got = linear_label_logprobs(case.hidden, case.weight, case.ids, chunk_size=3, **kwargs)
    want = dense(case.hidden, case.weight, case.ids, **kwargs)
    assert (got[2] is None) == (not with_target)
    for g, w in zip(got, want, strict=True):
        if g is not None and w is not None:
            torch.testing.assert_close(g, w, atol=1e-12, rtol=0)
    got_grads = torch.autograd.grad(mixed_loss(got), leaves)
    want_grads = torch.autograd.grad(mixed_loss(want), leaves)
    for g, w in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("settings", "with_bias", "with_target"), SETTINGS)
def test_gradcheck(settings: dict[str, Any], with_bias: bool, with_target: bool) -> None:
    case = make_case(n=3, d=3, v=9, k=3)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        kwargs = settings | extras(case._replace(bias=bias), with_bias, with_target)
        outputs = linear_label_logprobs(hidden, weight, case.ids, chunk_size=2, **kwargs)
        # The bias is an input of the check in any case; without one its gradient is zero.
        return tuple(x + 0 * bias.sum() for x in outputs if x is not None)

    assert torch.autograd.gradcheck(run, (case.hidden, case.weight, case.bias))


def test_finite_differences_of_the_loss_at_temperature_two() -> None:
    """Central differences of the whole loss, so a wrong power of T shows as a factor of 2."""
    case = make_case()
    teacher = torch.randn(N, V, dtype=torch.float64).log_softmax(1)
    rest = torch.ones(N, V, dtype=torch.bool).scatter(1, case.ids, False)
    log_tail = teacher.masked_fill(~rest, -math.inf).logsumexp(1)

    def loss(hidden: Tensor) -> Tensor:
        logp, log_rest, _ = linear_label_logprobs(hidden, case.weight, case.ids, temperature=2.0)
        return forward_kl(teacher.gather(1, case.ids), log_tail, logp, log_rest).sum()

    (grad,) = torch.autograd.grad(loss(case.hidden), [case.hidden])
    step = 1e-6
    numeric = torch.zeros_like(grad)
    for i, j in itertools.product(range(N), range(D)):
        delta = torch.zeros_like(grad)
        delta[i, j] = step
        with torch.no_grad():
            numeric[i, j] = (loss(case.hidden + delta) - loss(case.hidden - delta)) / (2 * step)
    assert grad.abs().max() > 1e-2
    torch.testing.assert_close(grad, numeric, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("k", [V, V - 1])
def test_kl_equals_dense_where_buckets_lose_nothing(k: int) -> None:
    """k = V has no tail, k = V - 1 a tail of one id: both are the dense KL, gradient included."""
    case = make_case(k=k)
    teacher = (3 * torch.randn(N, V, dtype=torch.float64)).log_softmax(1)
    rest = torch.ones(N, V, dtype=torch.bool).scatter(1, case.ids, False)
    log_tail = teacher.masked_fill(~rest, -math.inf).logsumexp(1)
    logp, log_rest, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    got = forward_kl(teacher.gather(1, case.ids), log_tail, logp, log_rest)
    student = (case.hidden @ case.weight.T).log_softmax(1)
    want = (teacher.exp() * (teacher - student)).sum(1)
    assert (log_rest == -math.inf).all() == (k == V)
    assert want.min() > 0.1
    assert (got - want).abs().max() <= 1e-8
    leaves = [case.hidden, case.weight]
    got_grads, want_grads = (torch.autograd.grad(x.sum(), leaves) for x in (got, want))
    for g, w in zip(got_grads, want_grads, strict=True):
        assert (g - w).abs().max() <= 1e-8


def test_gradient_of_an_empty_rest_is_dropped() -> None:
    case = make_case(k=V)
    logp, log_rest, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    clean = torch.autograd.grad(logp[:, 0].sum(), case.hidden, retain_graph=True)[0]
    for bad in (5.0, math.inf, math.nan):
        seeds = [torch.ones(N, dtype=torch.float64), torch.full((N,), bad, dtype=torch.float64)]
        dirty = torch.autograd.grad([logp[:, 0], log_rest], case.hidden, seeds, retain_graph=True)
        assert torch.equal(dirty[0], clean)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, N, 1000])
def test_invariant_to_chunk_size(chunk_size: int, temperature: float) -> None:
    case = make_case()
    leaves = [case.hidden, case.weight, case.bias]
    results = []
    for size in (None, chunk_size):
        out = linear_label_logprobs(
            case.hidden, case.weight, case.ids, target=case.target, temperature=temperature,
            bias=case.bias, softcap=3.0, chunk_size=size,
        )  # fmt: skip
        results.append((*out, *torch.autograd.grad(mixed_loss(out), leaves)))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-12, rtol=0)


def test_default_chunk_follows_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(dtype=torch.float32)
    heights: list[int] = []
    logits = chunked._logits

    def spy(*args: Any, out: Tensor) -> None:
        heights.append(len(out))
        logits(*args, out=out)

    monkeypatch.setattr(label_logprobs, "CHUNK_BYTES", 2 * V * 4)
    monkeypatch.setattr(chunked, "_logits", spy)
    linear_label_logprobs(case.hidden, case.weight, case.ids)
    assert heights == [2, 2, 2, 1]


def test_valid_vocab_equals_slicing_the_weight() -> None:
    valid = V - 6
    case = make_case()
    ids = make_case(v=valid).ids
    target = torch.arange(N) % valid
    outs, grads = [], []
    for weight, bias, kwargs in (
        (case.weight, case.bias, {"valid_vocab": valid}),
        (case.weight[:valid], case.bias[:valid], {}),
    ):
        out = linear_label_logprobs(
            case.hidden, weight, ids, target=target, bias=bias, temperature=2.0, **kwargs
        )
        outs.append(out)
        grads.append(torch.autograd.grad(mixed_loss(out), [case.hidden, case.weight, case.bias]))
    for a, b in zip([*outs[0], *grads[0]], [*outs[1], *grads[1]], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert (grads[0][1][valid:] == 0).all()
    assert (grads[0][1][:valid] != 0).any()
    full = linear_label_logprobs(case.hidden, case.weight, ids, bias=case.bias, temperature=2.0)
    assert (full[1] - outs[0][1]).abs().max() > 1e-3  # the mask mattered


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("with_id_zero", [False, True])
def test_padded_ids_equal_dropped_ids(with_id_zero: bool, temperature: float) -> None:
    """Rows with 0..k real ids in one batch give what each row gives alone, without its padding."""
    case = make_case(n=K + 1, seed=3)
    ids = case.ids.clone()
    ids[ids == 0] = next(i for i in range(1, V) if not (ids == i).any())
    if with_id_zero:  # the id that padding could be mistaken for
        ids[:, 0] = 0
    for row in range(K + 1):
        ids[row, torch.arange(K).roll(row)[row:]] = -1  # padding anywhere, not only at the end
    assert [int((r >= 0).sum()) for r in ids] == list(range(K + 1))
    kwargs: dict[str, Any] = {"target": case.target, "bias": case.bias}
    kwargs["temperature"] = temperature
    logp, log_rest, ce = linear_label_logprobs(case.hidden, case.weight, ids, **kwargs)
    assert torch.equal(logp == -math.inf, ids < 0)
    got = (logp * 0.7).masked_fill(ids < 0, 0).sum() + (log_rest * -1.3).sum() + ce.sum()  # type: ignore[union-attr]
    want = torch.zeros((), dtype=torch.float64)
    for row in range(K + 1):
        real = ids[row][ids[row] >= 0][None]
        alone = dense(
            case.hidden[row : row + 1], case.weight, real,
            **kwargs | {"target": case.target[row : row + 1]},
        )  # fmt: skip
        torch.testing.assert_close(logp[row][ids[row] >= 0], alone[0][0], atol=1e-12, rtol=0)
        torch.testing.assert_close(log_rest[row], alone[1][0], atol=1e-12, rtol=0)
        want = want + (alone[0] * 0.7).sum() + (alone[1] * -1.3).sum() + alone[2].sum()  # type: ignore[union-attr]
    leaves = [case.hidden, case.weight, case.bias]
    pairs = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True)
    for g, w in pairs:
        torch.testing.assert_close(g, w, atol=1e-11, rtol=0)


def test_gradient_arriving_at_padding_is_dropped() -> None:
    case = make_case()
    ids = case.ids.clone()
    ids[:, 2] = -1
    logp, _, _ = linear_label_logprobs(case.hidden, case.weight, ids)
    seed = torch.ones_like(logp)
    clean = torch.autograd.grad(logp, case.hidden, seed.masked_fill(ids < 0, 0), retain_graph=True)
    dirty = torch.autograd.grad(logp, case.hidden, seed.masked_fill(ids < 0, math.nan))
    assert torch.equal(clean[0], dirty[0])
    assert clean[0].abs().max() > 1e-3


def test_no_ids_leaves_plain_cross_entropy() -> None:
    case = make_case(k=0)
    logp, log_rest, ce = linear_label_logprobs(
        case.hidden, case.weight, case.ids, target=case.target
    )
    assert ce is not None
    assert logp.shape == (N, 0)
    torch.testing.assert_close(log_rest, torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)
    logits = case.hidden @ case.weight.T
    want = torch.nn.functional.cross_entropy(logits, case.target, reduction="none")
    torch.testing.assert_close(cross_entropy(ce), want)
    got_grad, want_grad = (
        torch.autograd.grad(x.sum(), case.weight) for x in (cross_entropy(ce), want)
    )
    torch.testing.assert_close(got_grad[0], want_grad[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype)
    logp, log_rest, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    loss = forward_kl(logp.detach(), log_rest.detach(), logp, log_rest)
    assert (loss == 0).all()
    tolerance = 100 * torch.finfo(dtype).eps
    leaves = [case.hidden, case.weight]
    for grad in torch.autograd.grad(loss.sum(), leaves, retain_graph=True):
        assert grad.abs().max() <= tolerance
    # The same tolerance sees the gradient of a teacher that is 1 % off.
    off = forward_kl(logp.detach() * 1.01, log_rest.detach(), logp, log_rest)
    assert torch.autograd.grad(off.sum(), case.hidden)[0].abs().max() > 10 * tolerance


def test_tiny_tail_survives_where_one_minus_sum_fails() -> None:
    """Peaked rows with a true tail near 1e-9, in float32: value and gradient within 1e-3."""
    n, d, v, k = 16, 8, 4096, 8
    case = make_case(n=n, d=d, v=v, k=k, dtype=torch.float32)
    bias = torch.randn(v)
    top = torch.arange(k).expand(n, k)
    bias[:k] += 27.0  # exp(-27) * 4096 / 8 = 1e-9
    hidden = (0.1 * case.hidden).detach().requires_grad_()
    logp, log_rest, _ = linear_label_logprobs(hidden, case.weight, top, bias=bias)
    _, want, _ = dense(hidden, case.weight, top, bias=bias)
    true_tail = want.exp()
    assert true_tail.min() > 1e-10
    assert true_tail.max() < 1e-8
    assert ((log_rest.double().exp() - true_tail) / true_tail).abs().max() <= 1e-3
    one_minus_sum = 1 - logp.exp().sum(1)
    assert ((one_minus_sum - true_tail) / true_tail).abs().min() > 1e-1
    got_grad, want_grad = (torch.autograd.grad(x.sum(), hidden)[0] for x in (log_rest, want))
    assert (got_grad - want_grad).abs().max() <= 1e-3 * want_grad.abs().max()


def test_rest_below_the_smallest_float_stays_finite() -> None:
    """r underflows to 0 in float32 but log r and its gradient (a softmax over the rest) do not."""
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[200.0], [1.0], [0.0]], requires_grad=True)
    _, log_rest, _ = linear_label_logprobs(hidden, weight, torch.tensor([[0]]))
    assert log_rest.exp().item() == 0
    (grad,) = torch.autograd.grad(log_rest.sum(), weight)
    p = math.e / (math.e + 1)
    torch.testing.assert_close(log_rest.item(), math.log(math.e + 1) - 200, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, torch.tensor([[-1.0], [p], [1 - p]]), rtol=1e-5, atol=0)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("hidden_dtype", DTYPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_dtypes_compute_in_float32_also_under_autocast(
    hidden_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(products, "BLOCK_BYTES", 7 * D * 4)  # several blocks of a 16-bit weight
    case = make_case(dtype=torch.float32)
    hidden = case.hidden.detach().to(hidden_dtype).requires_grad_()
    weight = case.weight.detach().to(weight_dtype).requires_grad_()
    leaves = [hidden, weight, case.bias]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = linear_label_logprobs(
            hidden, weight, case.ids, target=case.target, bias=case.bias, chunk_size=3
        )
        got_grads = torch.autograd.grad(mixed_loss(got), leaves)
    want = dense(hidden, weight, case.ids, target=case.target, bias=case.bias)
    for g, w in zip(got, want, strict=True):
        assert g is not None
        assert w is not None
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, w.float(), atol=1e-5, rtol=0)  # bf16 math would err by 1e-2
    for leaf, g, w in zip(
        leaves, got_grads, torch.autograd.grad(mixed_loss(want), leaves), strict=True
    ):
        assert g.dtype == leaf.dtype
        eps = torch.finfo(leaf.dtype).eps
        torch.testing.assert_close(g.double(), w.double(), atol=10 * 2**-23, rtol=max(eps, 1e-5))


def test_rest_from_bfloat16_is_finite_and_close() -> None:
    """From bf16 logits 1 - sum is noise of either sign; the op's log_rest is not."""
    case = make_case(n=32, d=16, v=512, k=64, dtype=torch.bfloat16)
    logits = (case.hidden @ case.weight.T).float()
    ids = logits.topk(64).indices
    _, log_rest, _ = linear_label_logprobs(case.hidden, case.weight, ids)
    _, want, _ = dense(case.hidden, case.weight, ids)
    assert log_rest.isfinite().all()
    torch.testing.assert_close(log_rest.double(), want, atol=1e-4, rtol=0)
    naive = 1 - logits.bfloat16().softmax(1).gather(1, ids).sum(1)
    naive_error = (naive.double() - want.exp()).abs().max()
    assert (log_rest.double().exp() - want.exp()).abs().max() < 1e-2 * naive_error


def test_bfloat16_weight_gradient_accumulates_in_float32() -> None:
    """Many small chunks into one weight: error against float64 within the final rounding, and far
    below that of the same chunks accumulated in bfloat16."""
    n, v = 512, 32
    case = make_case(n=n, d=4, v=v, k=4, dtype=torch.bfloat16)
    out = linear_label_logprobs(case.hidden, case.weight, case.ids, chunk_size=2)
    (got,) = torch.autograd.grad(out[0].sum() - out[1].sum(), case.weight)
    weight = case.weight.detach().double().requires_grad_()
    exact = dense(case.hidden, weight, case.ids)
    (truth,) = torch.autograd.grad(exact[0].sum() - exact[1].sum(), weight)
    naive = torch.zeros_like(got)
    for i in range(0, n, 2):
        part = dense(case.hidden[i : i + 2], case.weight, case.ids[i : i + 2])
        naive += torch.autograd.grad(part[0].sum() - part[1].sum(), case.weight)[0]
    assert got.dtype == torch.bfloat16
    scale = truth.abs().max()
    error, yardstick = ((g.double() - truth).abs().max() / scale for g in (got, naive))
    assert error <= 2**-8  # the one rounding at the end
    assert error < yardstick / 4


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    out = linear_label_logprobs(case.hidden, case.weight, case.ids, bias=case.bias)
    names = [x for x in ("hidden", "weight", "bias") if x != frozen]
    want = torch.autograd.grad(mixed_loss(out), [getattr(case, x) for x in names])

    seen: list[list[bool]] = []
    backward = chunked.project_backward

    def spy(g: Tensor, h: Tensor, w: Tensor, grad_h: Tensor | None, grad_w: Tensor | None) -> None:
        seen.append([grad_h is None, grad_w is None])
        backward(g, h, w, grad_h, grad_w)

    monkeypatch.setattr(chunked, "project_backward", spy)
    cold = case._replace(**{frozen: getattr(case, frozen).detach()})
    out = linear_label_logprobs(cold.hidden, cold.weight, cold.ids, bias=cold.bias)
    got = torch.autograd.grad(mixed_loss(out), [getattr(cold, x) for x in names])
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    assert seen == [[frozen == "hidden", frozen == "weight"]]


def test_empty_batch() -> None:
    case = make_case(n=0)
    out = linear_label_logprobs(
        case.hidden, case.weight, case.ids, target=case.target, bias=case.bias, softcap=2.0
    )
    assert [tuple(x.shape) for x in out if x is not None] == [(0, K), (0,), (0,)]
    grads = torch.autograd.grad(mixed_loss(out), [case.hidden, case.weight, case.bias])
    assert [tuple(g.shape) for g in grads] == [(0, D), (V, D), (V,)]
    assert all((g == 0).all() for g in grads)


def test_tied_weight_adds_both_gradients() -> None:
    case = make_case()
    tokens = torch.arange(N)

    def total(op: Any) -> Tensor:
        return mixed_loss(op(case.weight[tokens] * case.hidden, case.weight, case.ids))

    got, want = (
        torch.autograd.grad(total(f), case.weight)[0] for f in (linear_label_logprobs, dense)
    )
    torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


def test_inside_torch_compile() -> None:
    case = make_case()

    def step(hidden: Tensor) -> Tensor:
        return mixed_loss(linear_label_logprobs(hidden * 2, case.weight, case.ids))

    (want,) = torch.autograd.grad(step(case.hidden), case.hidden)
    compiled = torch.compile(step, backend="eager")
    (got,) = torch.autograd.grad(compiled(case.hidden), case.hidden)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bfloat16_product_path(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA-only branch, with its one kernel emulated: same numbers up to a bf16 gradient."""
    case = make_case(dtype=torch.bfloat16)
    real_mm = torch.mm

    def mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return real_mm(a.to(out_dtype), b.to(out_dtype))

    results = []
    for fast in (False, True):
        if fast:
            monkeypatch.setattr(torch, "mm", mm)
            monkeypatch.setattr(
                products, "tensor_cores", lambda a, b: a.dtype == b.dtype == torch.bfloat16
            )
        out = linear_label_logprobs(
            case.hidden, case.weight, case.ids, target=case.target, temperature=temperature
        )
        results.append((out, torch.autograd.grad(mixed_loss(out), [case.hidden, case.weight])))
    for slow_x, fast_x in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(fast_x, slow_x)
    for slow_x, fast_x in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(fast_x, slow_x, atol=0.03, rtol=0.03)
        assert slow_x.abs().max() > 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "repeated id": ({"ids": torch.tensor([[1, 1]] * N)}, "unique"),
    "id past valid_vocab": ({"ids": torch.full((N, 1), V - 1), "valid_vocab": V - 1}, "0..21"),
    "id below -1": ({"ids": torch.full((N, 1), -2)}, "-1 for padding"),
    "int32 ids": ({"ids": torch.zeros(N, 1, dtype=torch.int32)}, "int64"),
    "ignored target": ({"target": torch.full((N,), -100)}, "-100"),
    "target shape": ({"target": torch.zeros(N, 1, dtype=torch.int64)}, "target must be"),
    "3-d hidden": ({"hidden": torch.zeros(1, N, D)}, "flatten"),
    "integer hidden": ({"hidden": torch.zeros(N, D, dtype=torch.int64)}, "floating"),
    "bias shape": ({"bias": torch.zeros(V, 1)}, "bias"),
    "zero temperature": ({"temperature": 0.0}, "temperature"),
    "nan temperature": ({"temperature": math.nan}, "temperature"),
    "negative softcap": ({"softcap": -1.0}, "softcap"),
    "zero chunk": ({"chunk_size": 0}, "chunk_size"),
    "valid_vocab past V": ({"valid_vocab": V + 1}, "valid_vocab"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    change, message = BAD[name]
    case = make_case()
    kwargs = {"hidden": case.hidden, "weight": case.weight, "ids": case.ids} | change
    with pytest.raises(ValueError, match=message):
        linear_label_logprobs(**kwargs)
