"""Precision where it is easily lost: tiny tails, 16-bit inputs, long sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.trainer.ops.case import D, dense, make_case, mixed_loss
from trainer.ops import linear_label_logprobs, products


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
    """With bf16 logits, 1 - sum is noise of either sign; the op's log_rest is not."""
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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bfloat16_product_path(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA-only branch, with its one kernel emulated: same numbers up to a bf16 gradient."""
    case = make_case(dtype=torch.bfloat16)
    real_addmm = torch.addmm

    def addmm(
        c: Tensor, a: Tensor, b: Tensor, *, beta: int, out_dtype: torch.dtype, out: Tensor
    ) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        assert c is out
        return real_addmm(c, a.to(out_dtype), b.to(out_dtype), beta=beta, out=out)

    results = []
    for fast in (False, True):
        if fast:
            monkeypatch.setattr(torch, "addmm", addmm)
            monkeypatch.setattr(
                products, "uses_tensor_cores", lambda a, b: a.dtype == b.dtype == torch.bfloat16
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
