"""Products of a chunk of tokens with a head's weight, forward and backward.

The only device-specific choice of the op is made here: the dtype of a product's operands.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 16 * 2**20
"""A weight narrower than the compute dtype is widened in blocks of rows of this many bytes."""
_HAS_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype")


def operand_dtype(device: torch.device, result: torch.dtype) -> torch.dtype | None:
    """Return bfloat16 where CUDA's autocast asks for it and products of it into `result` exist.

    None leaves the operands as they are. Products of float32 take a GPU many times as long.
    """
    narrow = (
        device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and result == torch.float32
        and _HAS_OUT_DTYPE
    )
    return torch.bfloat16 if narrow else None


def project(rows: Tensor, weight: Tensor, *, out: Tensor, beta: int = 0) -> None:
    """Compute out [m, V] = beta * out + rows [m, d] @ weight [V, d].T, in out's dtype."""
    for block in _weight_blocks(rows, weight, out.dtype):
        _addmm(out[:, block], rows, weight[block].t(), beta=beta)


def project_backward(
    g: Tensor, rows: Tensor, weight: Tensor, grad_rows: Tensor | None, grad_weight: Tensor | None
) -> None:
    """Write grad_rows [m, d] and add to grad_weight [>= V, d], given the gradient g [m, V] of out.

    Accumulates in g's dtype; grad_rows may be narrower and is rounded once.
    """
    total = g.new_zeros(rows.shape)
    if uses_tensor_cores(rows, weight):
        g = g.to(weight.dtype)
    for block in _weight_blocks(rows, weight, total.dtype):
        if grad_rows is not None:
            _addmm(total, g[:, block], weight[block])
        if grad_weight is not None:
            _addmm(grad_weight[block], g[:, block].t(), rows)
    if grad_rows is not None:
        grad_rows.copy_(total)


def uses_tensor_cores(a: Tensor, b: Tensor) -> bool:
    """Return True if bfloat16 operands multiply into float32 directly: CUDA only, torch >= 2.8."""
    return a.is_cuda and a.dtype == b.dtype == torch.bfloat16 and _HAS_OUT_DTYPE


def _addmm(out: Tensor, a: Tensor, b: Tensor, *, beta: int = 1) -> None:
    if uses_tensor_cores(a, b):
        torch.addmm(out, a, b, beta=beta, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=beta)


def _weight_blocks(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Cut the rows of a weight so that little is in memory where they must be widened."""
    count, d = weight.shape
    if weight.dtype == dtype or uses_tensor_cores(rows, weight):
        return slices(count, max(1, count))
    return slices(count, max(1, BLOCK_BYTES // (max(1, d) * dtype.itemsize)))


def slices(total: int, size: int) -> Iterator[slice]:
    """Cut 0..total into pieces of `size`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
