"""The op on every device and in every precision, against a float64 dense reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.devices import DEVICES
from tests.trainer.ops.case import Case, dense, extras, make_case, mixed_loss
from trainer.ops import linear_label_logprobs
from trainer.ops.label_logprobs import CHUNK_BYTES, GPU_CHUNK_BYTES, default_chunk_bytes

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 2.0},
    "capped": {"softcap": 30.0, "scale": 0.7},
    "hot and capped": {"temperature": 2.0, "softcap": 30.0},
}
TOLERANCE = {"fp32": 1e-5, "autocast": 1e-2, "bf16": 1e-2}
"""Largest ‖difference‖ / ‖reference‖; operands in bfloat16 are rounded by 0.4 %."""


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


def on(case: Case, device: str, dtype: torch.dtype) -> Case:
    """Return the case on a device, its real numbers as new leaves."""
    moved = (x.detach().to(device) for x in case)
    return Case(*(x.to(dtype).requires_grad_() if x.is_floating_point() else x for x in moved))


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_equal_a_dense_float64_reference(
    device: str, precision: str, settings: str, low_rank: bool
) -> None:
    """`autocast` multiplies float32 operands in bfloat16 on a GPU; on a CPU it changes nothing."""
    case = make_case(n=65, d=48, v=1000, k=16)
    stored = torch.bfloat16 if precision == "bf16" else torch.float32
    ours, exact = on(case, device, stored), on(case, device, torch.float32)
    exact = on(Case(*ours), device, torch.float64)  # of the same rounded numbers
    with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
        got = linear_label_logprobs(
            ours.hidden, ours.weight, ours.ids, chunk_size=16,
            **extras(ours, bias=True, target=True, low_rank=low_rank), **SETTINGS[settings],
        )  # fmt: skip
    want = dense(
        exact.hidden, exact.weight, exact.ids,
        **extras(exact, bias=True, target=True, low_rank=low_rank), **SETTINGS[settings],
    )  # fmt: skip
    for found, expected in zip(got, want, strict=True):
        assert found is not None
        assert expected is not None
        assert found.dtype == torch.float32
        assert relative(found, expected) < TOLERANCE[precision]
    count = 5 if low_rank else 3
    leaves = [(x[:3] + x[3:5])[:count] for x in (ours, exact)]
    grads = [
        torch.autograd.grad(mixed_loss(tuple(x.cpu() for x in out if x is not None)), of)
        for out, of in zip((got, want), leaves, strict=True)
    ]
    for leaf, found, expected in zip(leaves[0], *grads, strict=True):
        assert found.dtype == leaf.dtype
        assert relative(found, expected) < TOLERANCE[precision]


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_narrows_the_operands_on_a_gpu_alone(device: str) -> None:
    """On a GPU the values are those of operands rounded to bfloat16, with float32 sums."""
    case = on(make_case(n=9, d=64, v=500, k=8), device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        got, _, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    operands = case.hidden, case.weight
    if device == "cuda":
        operands = tuple(x.detach().bfloat16() for x in operands)
    want, _, _ = dense(*operands, case.ids)
    assert relative(got, want) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_tiny_tails_and_padded_ids(device: str) -> None:
    """A rest of 1e-9 keeps its value and gradient in float32; an id of -1 has none."""
    case = on(make_case(n=16, d=8, v=4096, k=8), device, torch.float32)
    bias = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    bias[:8] += 27.0  # exp(-27) * 4096 / 8 = 1e-9
    bias = bias.to(device)
    ids = torch.arange(8, device=device).repeat(16, 1)
    hidden = (0.1 * case.hidden).detach().requires_grad_()
    got = linear_label_logprobs(hidden, case.weight, ids, bias=bias)[1]
    want = dense(hidden, case.weight, ids, bias=bias)[1]
    assert want.exp().max() < 1e-8
    torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=0)
    grads = [torch.autograd.grad(x.sum(), hidden)[0] for x in (got, want)]
    assert relative(*grads) < 1e-3
    ids[:, 5:] = -1
    logp, rest, _ = linear_label_logprobs(hidden, case.weight, ids, bias=bias)
    assert (logp[:, 5:] == -math.inf).all()
    fewer = linear_label_logprobs(hidden, case.weight, ids[:, :5], bias=bias)
    torch.testing.assert_close(logp[:, :5], fewer[0])
    torch.testing.assert_close(rest, fewer[1])


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_size_of_chunks_changes_only_the_rounding(device: str, precision: str) -> None:
    case = on(make_case(n=130, d=64, v=2000, k=8), device, torch.float32)
    found = []
    for size in (1, 17, 130):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            out = linear_label_logprobs(
                case.hidden, case.weight, case.ids, target=case.target, chunk_size=size
            )
        loss = mixed_loss(tuple(x.cpu() for x in out if x is not None))
        found.append((*out, *torch.autograd.grad(loss, [case.hidden, case.weight])))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is not None
            assert relative(b, a) < (1e-5 if precision == "fp32" else 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_memory_does_not_grow_with_the_tokens(precision: str) -> None:
    """The peak above inputs, outputs and gradients: the chunks, and the weight in bfloat16."""
    vocab, d, k = 50_000, 256, 16
    weight = torch.randn(vocab, d, device="cuda", requires_grad=True)

    def peak(n: int) -> int:
        hidden = torch.randn(n, d, device="cuda", requires_grad=True)
        ids = torch.arange(k, device="cuda").repeat(n, 1)
        target = torch.zeros(n, dtype=torch.int64, device="cuda")
        weight.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "autocast"):
            logp, rest, ce = linear_label_logprobs(
                hidden, weight, ids, target=target, chunk_bytes=2**26
            )
        assert ce is not None
        (logp.sum() + rest.sum() + ce.sum()).backward()
        own = 4 * (weight.numel() + hidden.numel()) + 8 * n * (k + 4)
        return torch.cuda.max_memory_allocated() - before - own

    few, many = peak(1000), peak(16_000)
    # In bfloat16: the weight, and a chunk's gradient.
    allowed = 2**26 + (2 * vocab * d + 2**25 if precision == "autocast" else 0)
    workspace = 2**25  # cuBLAS's
    assert few < allowed + workspace
    assert many - few < 15_000 * (2 * d * 2 + 64 * k)  # hidden in bfloat16, ids and their gradient


@pytest.mark.parametrize("device", DEVICES)
def test_chunk_budget_of_a_device(device: str) -> None:
    budget = default_chunk_bytes(torch.device(device))
    assert budget == (CHUNK_BYTES if device == "cpu" else GPU_CHUNK_BYTES)
    assert CHUNK_BYTES < GPU_CHUNK_BYTES
