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


def project(rows: Tensor, weight: Tensor, *, out: Tensor, beta: int = 0) -> None:
    """Compute out [m, V] = beta * out + rows [m, d] @ weight [V, d].T, in out's dtype."""
    for block in _weight_blocks(weight, out.dtype):
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
    for block in _weight_blocks(weight, total.dtype):
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
        product = torch.mm(a, b, out_dtype=out.dtype)
        out.copy_(product) if beta == 0 else out.add_(product)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=beta)


def _weight_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    rows, d = weight.shape
    if weight.dtype == dtype:
        return slices(rows, max(1, rows))
    return slices(rows, max(1, BLOCK_BYTES // (max(1, d) * dtype.itemsize)))


def slices(total: int, size: int) -> Iterator[slice]:
    """Cut 0..total into pieces of `size`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
