"""Inputs of the op, and a reference with materialized logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

N, D, V, K, R = 7, 5, 23, 4, 2


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    low: Tensor
    up: Tensor
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
    shapes = ((n, d), (v, d), (v,), (n, R), (v, R))
    real = (torch.randn(*shape, generator=gen, dtype=torch.float64) for shape in shapes)
    hidden, weight, bias, low, up = (x.to(dtype).requires_grad_() for x in real)
    ids = torch.rand(n, v, generator=gen).argsort(1)[:, :k]
    target = torch.randint(v, (n,), generator=gen)
    if n > 1 and 0 < k < v:
        target[0] = ids[0, 0]  # one target among the ids, and one outside
        target[1] = next(t for t in range(v) if t not in ids[1].tolist())
    return Case(hidden, weight, bias, low, up, ids, target)


def dense(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    target: Tensor | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the docstring's formula with materialized logits, in float64, by plain autograd."""
    z = hidden.double() @ weight.double().T
    z = z if low_rank is None else z + low_rank[0].double() @ low_rank[1].double().T
    z = z if bias is None else z + bias.double()
    z = z * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature).log_softmax(1)
    rest = torch.ones_like(z, dtype=torch.bool).scatter(1, ids, False)
    log_rest = log_p.masked_fill(~rest, -math.inf).logsumexp(1)
    ce = None if target is None else z.log_softmax(1).gather(1, target[:, None])[:, 0]
    return log_p.gather(1, ids), log_rest, ce


def mixed_loss(outputs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    """Return a scalar that weights every output differently, so that no gradient term can hide."""
    parts = [x.double() for x in outputs if x is not None]
    weights = [torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view(x.shape) for x in parts]
    return sum((w * x).sum() for w, x in zip(weights, parts, strict=True))  # type: ignore[return-value]


def extras(case: Case, *, bias: bool, target: bool, low_rank: bool = False) -> dict[str, Any]:
    """Return the op's keyword arguments for the parts that a head has."""
    found: dict[str, Any] = {"bias": case.bias} if bias else {}
    found |= {"target": case.target} if target else {}
    return found | ({"low_rank": (case.low, case.up)} if low_rank else {})
