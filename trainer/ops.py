"""Linear head + label log-probabilities in one pass, without ever holding [n, V] logits.

Every label loss needs only k + 1 numbers a position: the student's log-probability of the k
labeled ids and of everything else together. This op produces them straight from the last hidden
state and the head's weight, in chunks of tokens, and recomputes the logits in backward.

The tail is a log-sum-exp over the *other* ids, never `1 - sum`: where the labeled ids hold almost
all the mass, `1 - sum` is pure rounding error, and its gradient with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of one [chunk, V] logits buffer when the caller names no chunk size. One is alive at
# T = 1, two with softcap or with a target at T != 1, three with both.
CHUNK_BYTES = 64 * 2**20
# A weight narrower than the compute dtype is widened in blocks of rows of this many bytes.
BLOCK_BYTES = 16 * 2**20
_HAS_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype")


def linear_label_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    target: Tensor | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_size: int | None = None,
    valid_vocab: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student log-probabilities of the labeled ids, of all other ids together, and of the target.

    Equivalent to (but in O(chunk * V) memory, and exact where the tail is tiny):

        z = hidden @ weight.T + bias;  z = softcap * tanh(z / softcap);  z[:, valid_vocab:] = -inf
        p = softmax(z / temperature)
        logp = log p[ids];  log_rest = log(sum of p over all columns not in ids)
        target_logp = log_softmax(z)[target]            # always at T = 1

    hidden [n, d], weight [V, d] and bias [V] are floating point and may differ in dtype. ids [n, k]
    is int64, unique within a row; k = 0 is allowed (log_rest is then 0). An id of -1 is padding
    (ragged top-k): its logp is -inf, it passes no gradient, and it hides no column from the rest.
    target [n] is int64; it is never taken out of the rest, labeled or not. valid_vocab: columns at
    or past it do not exist for the student (a head padded past the tokenizer); their weight gets a
    zero gradient. chunk_size: tokens at a time; None takes what fits CHUNK_BYTES.

    Returns logp [n, k], log_rest [n], target_logp [n] or None, in nats, float64 if hidden or weight
    is float64, else float32. If the ids cover the whole vocabulary log_rest is -inf and whatever
    gradient arrives for it is dropped.

    Math is in the returned dtype whatever the inputs and inside `torch.autocast` as outside it.
    Gradients reach hidden, weight and bias, only where required; the weight's accumulates in the
    returned dtype and is rounded once, at the end. On CUDA with hidden and weight both bfloat16 the
    products run on bfloat16 operands (logits gradient included) with float32 results.

    Raises ValueError for shapes, dtypes or settings that do not fit and, for CPU tensors, for ids
    or targets out of range and ids repeated in a row. On other devices these values are not read
    (it would stall the device): an id past V trips the device's own index check, one in
    [valid_vocab, V) is undefined, and a repeated id gives a wrong log_rest.
    """
    vocab = weight.shape[0] if valid_vocab is None else valid_vocab
    _check_shapes(hidden, weight, ids, target, bias, vocab)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap must be positive and finite, or None, got {softcap}")
    if chunk_size is None:
        width = 8 if torch.float64 in (hidden.dtype, weight.dtype) else 4
        chunk_size = max(1, CHUNK_BYTES // (vocab * width))
    elif chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    logp, log_rest, target_logp = _apply(
        hidden, weight, bias, ids, target, temperature, softcap, chunk_size, vocab
    )
    return logp, log_rest, None if target is None else target_logp


class _LinearLabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        target: Tensor | None,
        temperature: float,
        softcap: float | None,
        chunk_size: int,
        vocab: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check_values(ids, target, vocab)
        n, k = ids.shape
        dtype = _compute_dtype(hidden, weight)
        logp = hidden.new_empty(n, k, dtype=dtype)
        log_rest, lse = logp.new_empty(n), logp.new_empty(n)
        with_target = target is not None
        target_logp, lse_1 = (logp.new_empty(n if with_target else 0) for _ in range(2))
        # The buffers are made once: fresh pages for every chunk cost as much as a pass over them.
        z_all = logp.new_empty(min(n, chunk_size), vocab)
        spare = torch.empty_like(z_all) if with_target and temperature != 1.0 else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(n, chunk_size):
                z = z_all[: rows.stop - rows.start]
                _logits(hidden[rows], weight[:vocab], bias, softcap, out=z)
                if target is not None:
                    target_logp[rows] = z.gather(1, target[rows, None])[:, 0]
                if spare is not None:
                    lse_1[rows] = _logsumexp(z, scratch=spare[: len(z)])
                if temperature != 1.0:
                    z.div_(temperature)
                pad, _, safe = _mirror_padding(ids[rows])
                z_ids = z.gather(1, safe)
                no_ids = pad.all(1, keepdim=True)  # there `safe` points at a column of the rest
                z.scatter_(1, safe, torch.where(no_ids, z_ids, -math.inf))
                z_ids.masked_fill_(pad, -math.inf)
                lse_rest = _logsumexp(z, scratch=z)
                lse[rows] = torch.logaddexp(torch.logsumexp(z_ids, 1), lse_rest)
                logp[rows] = z_ids - lse[rows, None]
                log_rest[rows] = lse_rest - lse[rows]
        if with_target:
            if spare is None:
                lse_1 = lse
            target_logp -= lse_1
        ctx.save_for_backward(hidden, weight, bias, ids, target, logp, log_rest, lse, lse_1)
        ctx.settings = temperature, softcap, chunk_size, vocab
        return logp, log_rest, target_logp

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, u_ids: Tensor, u_rest: Tensor, u_target: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, target, logp, log_rest, lse, lse_1 = ctx.saved_tensors
        temperature, softcap, chunk_size, vocab = ctx.settings
        dtype, n = logp.dtype, len(hidden)
        want_h, want_w, want_b = ctx.needs_input_grad[:3]
        grad_h = torch.empty_like(hidden) if want_h else None
        grad_w = weight.new_zeros(weight.shape, dtype=dtype) if want_w else None
        grad_b = weight.new_zeros(len(weight), dtype=dtype) if want_b else None

        z_all = logp.new_empty(min(n, chunk_size), vocab)
        separate_ce = target is not None and temperature != 1.0
        g_all = torch.empty_like(z_all) if separate_ce or softcap is not None else z_all
        p_all = torch.empty_like(z_all) if separate_ce and softcap is not None else z_all
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(n, chunk_size):
                z, g = z_all[: rows.stop - rows.start], g_all[: rows.stop - rows.start]
                _logits(hidden[rows], weight[:vocab], bias, softcap, out=z)
                pad, slot, safe = _mirror_padding(ids[rows])
                no_rest = log_rest[rows] == -math.inf
                u = u_ids[rows].masked_fill(pad, 0) / temperature
                u_tail = u_rest[rows].masked_fill(no_rest, 0) / temperature
                u_sum = u.sum(1) + u_tail
                if target is not None and not separate_ce:
                    u_sum += u_target[rows]  # same softmax: one more share of -p * sum(u)

                # Off the ids: u_tail p_j / r - p_j sum(u) = (u_tail - r sum(u)) p_j / r, where
                # p_j / r is a softmax over the rest alone: in [0, 1] however small r is.
                lse_rest = lse[rows] + log_rest[rows].masked_fill(no_rest, 0)
                torch.sub(z, (temperature * lse_rest)[:, None], out=g)
                if temperature != 1.0:
                    g.div_(temperature)
                scale = u_tail - log_rest[rows].exp() * u_sum
                g.exp_().mul_(scale[:, None])
                # On the ids: u_j - p_j sum(u). Padding repeats a real slot's value, or (a row
                # without ids) the one already there, so that the scatter has no conflict.
                on_ids = (u - logp[rows].exp() * u_sum[:, None]).gather(1, slot)
                g.scatter_(1, safe, torch.where(pad.all(1, True), g.gather(1, safe), on_ids))
                if separate_ce:
                    p = torch.sub(z, lse_1[rows, None], out=p_all[: len(z)]).exp_()
                    g.sub_(p.mul_(u_target[rows, None]))
                if target is not None:
                    g.scatter_add_(1, target[rows, None], u_target[rows, None])
                if softcap is not None:
                    g.mul_(z.div_(softcap).square_().neg_().add_(1))  # derivative of tanh

                if grad_b is not None:
                    grad_b[:vocab] += g.sum(0)
                grad_rows = None if grad_h is None else grad_h[rows]
                _linear_backward(g, hidden[rows], weight[:vocab], grad_rows, grad_w)
        return (
            grad_h,
            None if grad_w is None else grad_w.to(weight.dtype),
            None if grad_b is None else grad_b.to(bias.dtype),
            *(None,) * 6,
        )


# A Python loop over chunks: torch.compile would only unroll it, so it breaks the graph here.
_apply = cast(Any, torch.compiler.disable)(_LinearLabelLogprobs.apply)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, *, out: Tensor
) -> None:
    for block in _weight_blocks(weight, out.dtype):
        _addmm(out[:, block], hidden, weight[block].t(), beta=0)
    if bias is not None:
        out.add_(bias[: out.shape[1]])
    if softcap is not None:
        out.div_(softcap).tanh_().mul_(softcap)


def _linear_backward(
    g: Tensor, hidden: Tensor, weight: Tensor, grad_h: Tensor | None, grad_w: Tensor | None
) -> None:
    """Write grad_h (one chunk) and add to grad_w, given the chunk's logits gradient g."""
    total = g.new_zeros(hidden.shape)
    if _tensor_cores(hidden, weight):
        g = g.to(weight.dtype)
    for block in _weight_blocks(weight, total.dtype):
        if grad_h is not None:
            _addmm(total, g[:, block], weight[block])
        if grad_w is not None:
            _addmm(grad_w[block], g[:, block].t(), hidden)
    if grad_h is not None:
        grad_h.copy_(total)


def _addmm(out: Tensor, a: Tensor, b: Tensor, *, beta: int = 1) -> None:
    """out = beta * out + a @ b, in out's dtype."""
    if _tensor_cores(a, b):
        product = torch.mm(a, b, out_dtype=out.dtype)
        out.copy_(product) if beta == 0 else out.add_(product)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=beta)


def _tensor_cores(a: Tensor, b: Tensor) -> bool:
    """Whether to multiply bfloat16 operands into float32 directly: CUDA only, torch >= 2.8."""
    return a.is_cuda and a.dtype == b.dtype == torch.bfloat16 and _HAS_OUT_DTYPE


def _weight_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    rows, d = weight.shape
    if weight.dtype == dtype:
        return _slices(rows, max(1, rows))
    return _slices(rows, max(1, BLOCK_BYTES // (max(1, d) * dtype.itemsize)))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _logsumexp(z: Tensor, *, scratch: Tensor) -> Tensor:
    """Row-wise log-sum-exp that overwrites scratch (which may be z) instead of allocating."""
    top = z.amax(1)
    top.masked_fill_(top == -math.inf, 0)  # an all-masked row: log 0, not inf - inf
    return torch.sub(z, top[:, None], out=scratch).exp_().sum(1).log_().add_(top)


def _mirror_padding(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make padded slots safe to scatter: each repeats the slot of its row's largest id.

    Returns pad [n, k], slot [n, k] (the slot each one stands for) and safe ids [n, k] (0 throughout
    a row without any id).
    """
    pad = ids < 0
    slot = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if ids.shape[1]:
        slot = torch.where(pad, ids.argmax(1, keepdim=True), slot)
    return pad, slot, ids.gather(1, slot).clamp_min(0)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check_shapes(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    vocab: int,
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"need hidden [n, d] and weight [V, d], got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}; flatten [batch, time, d] and select label positions first"
        )
    n, full = len(hidden), len(weight)
    if not 1 <= vocab <= full:
        raise ValueError(f"valid_vocab must be in 1..{full} (rows of weight), got {vocab}")
    if ids.dim() != 2 or len(ids) != n or ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64 [{n}, k], got {ids.dtype} {tuple(ids.shape)}")
    if target is not None and (target.shape != (n,) or target.dtype != torch.int64):
        raise ValueError(f"target must be int64 [{n}], got {target.dtype} {tuple(target.shape)}")
    if bias is not None and bias.shape != (full,):
        raise ValueError(f"bias must be [{full}], got {tuple(bias.shape)}")
    if not all(t.is_floating_point() for t in (hidden, weight, bias) if t is not None):
        raise ValueError("hidden, weight and bias must be floating point")


def _check_values(ids: Tensor, target: Tensor | None, vocab: int) -> None:
    if ids.device.type != "cpu":
        return
    ordered = ids.sort(1).values
    if bool(((ordered < -1) | (ordered >= vocab)).any()):
        raise ValueError(f"ids must be in 0..{vocab - 1}, or -1 for padding")
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError("ids must be unique within a row: a repeated id would be counted twice")
    if target is not None and bool(((target < 0) | (target >= vocab)).any()):
        raise ValueError(f"target must be in 0..{vocab - 1}: select positions, do not pass -100")
