"""Forward and backward of the op, one chunk of tokens at a time; backward recomputes the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.ops.products import project, project_backward, slices

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `linear_label_logprobs` that are not tensors.

    Attributes:
        vocab: number of columns of the head that exist for the student.
        operands: dtype of the products' operands; None leaves them as they are.
    """

    temperature: float
    scale: float
    softcap: float | None
    vocab: int
    chunk_size: int
    operands: torch.dtype | None


class Context(Protocol):
    """The part of PyTorch's context that the op uses; `settings` is ours.

    Of the saved tensors bias, low, up and target may be None.
    """

    settings: Settings
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of `save_for_backward`."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for backward."""


class ChunkedLabelLogprobs(torch.autograd.Function):
    """Computes logp, log_rest and target_logp of `linear_label_logprobs`, which checks inputs."""

    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        ids: Tensor,
        target: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take log-sum-exps over the ids, over the rest, and over all, one chunk at a time."""
        n, k = ids.shape
        temperature, vocab = settings.temperature, settings.vocab
        logp = hidden.new_empty(n, k, dtype=compute_dtype(hidden, weight))
        log_rest, lse = logp.new_empty(n), logp.new_empty(n)
        with_target = target is not None
        target_logp, lse_1 = (logp.new_empty(n if with_target else 0) for _ in range(2))
        # Allocated once: fresh pages for every chunk cost as much as a pass over them.
        z_all = logp.new_empty(min(n, settings.chunk_size), vocab)
        spare = torch.empty_like(z_all) if with_target and temperature != 1.0 else None
        given = hidden, weight, bias, low, up
        hidden, weight = cast_operands(settings, hidden, weight)
        low, up = cast_operands(settings, low, up)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in slices(n, settings.chunk_size):
                z = z_all[: rows.stop - rows.start]
                chunk_logits(rows, hidden, weight, bias, low, up, settings, out=z)
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
        ctx.save_for_backward(*given, ids, target, logp, log_rest, lse, lse_1)
        ctx.settings = settings
        return logp, log_rest, target_logp

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Context, u_ids: Tensor, u_rest: Tensor, u_target: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute the logits' gradient of a chunk in closed form, and from it the inputs'."""
        given, others = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        (hidden, weight, bias, low, up), (ids, target, logp, log_rest, lse, lse_1) = given, others
        settings = ctx.settings
        temperature, softcap, vocab = settings.temperature, settings.softcap, settings.vocab
        dtype, n = logp.dtype, len(hidden)
        want_h, want_w, want_b, want_low, want_up = ctx.needs_input_grad[:5]
        grad_h = torch.empty_like(hidden) if want_h else None
        grad_w = weight.new_zeros(weight.shape, dtype=dtype) if want_w else None
        grad_b = weight.new_zeros(len(weight), dtype=dtype) if want_b else None
        grad_low = torch.empty_like(low) if want_low else None
        grad_up = up.new_zeros(up.shape, dtype=dtype) if want_up else None

        z_all = logp.new_empty(min(n, settings.chunk_size), vocab)
        separate_ce = target is not None and temperature != 1.0
        g_all = torch.empty_like(z_all) if separate_ce or softcap is not None else z_all
        p_all = torch.empty_like(z_all) if separate_ce and softcap is not None else z_all
        hidden, weight = cast_operands(settings, hidden, weight)
        low, up = cast_operands(settings, low, up)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in slices(n, settings.chunk_size):
                z, g = z_all[: rows.stop - rows.start], g_all[: rows.stop - rows.start]
                chunk_logits(rows, hidden, weight, bias, low, up, settings, out=z)
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
                if settings.scale != 1.0:
                    g.mul_(settings.scale)

                if grad_b is not None:
                    grad_b[:vocab] += g.sum(0)
                grad_rows = None if grad_h is None else grad_h[rows]
                project_backward(g, hidden[rows], weight[:vocab], grad_rows, grad_w)
                if low is not None:
                    grad_rows = None if grad_low is None else grad_low[rows]
                    project_backward(g, low[rows], up[:vocab], grad_rows, grad_up)
        grads = grad_h, grad_w, grad_b, grad_low, grad_up
        rounded = (None if g is None else g.to(t.dtype) for g, t in zip(grads, given, strict=True))
        return *rounded, *(None,) * 3


def buffers(*, temperature: float, softcap: float | None, with_target: bool) -> int:
    """Count the [chunk, vocab] buffers alive at once, in backward, which needs more of them."""
    separate_ce = with_target and temperature != 1.0
    return 1 + (separate_ce or softcap is not None) + (separate_ce and softcap is not None)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def cast_operands(settings: Settings, *factors: OptionalTensor) -> list[OptionalTensor]:
    """Return factors of products in the dtype that they are multiplied in."""
    dtype = settings.operands
    return [x if x is None or dtype is None else x.to(dtype) for x in factors]


def chunk_logits(
    rows: slice,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low: Tensor | None,
    up: Tensor | None,
    settings: Settings,
    *,
    out: Tensor,
) -> None:
    """Write the logits [m, vocab] of a chunk of tokens into `out`, before any temperature."""
    project(hidden[rows], weight[: settings.vocab], out=out)
    if low is not None and up is not None:
        project(low[rows], up[: settings.vocab], out=out, beta=1)
    if bias is not None:
        out.add_(bias[: settings.vocab])
    if settings.scale != 1.0:
        out.mul_(settings.scale)
    if settings.softcap is not None:
        out.div_(settings.softcap).tanh_().mul_(settings.softcap)


def _logsumexp(z: Tensor, *, scratch: Tensor) -> Tensor:
    """Return the row-wise log-sum-exp; overwrite scratch, which may be z, instead of allocating."""
    top = z.amax(1)
    top.masked_fill_(top == -math.inf, 0)  # an all-masked row: log 0, not inf - inf
    return torch.sub(z, top[:, None], out=scratch).exp_().sum(1).log_().add_(top)


def _mirror_padding(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make padded slots safe to scatter: each repeats the slot of its row's largest id.

    Returns:
        pad [n, k], slot [n, k] (the slot that each one repeats) and safe ids [n, k] (0 throughout
        a row without any id).
    """
    pad = ids < 0
    slot = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if ids.shape[1]:
        slot = torch.where(pad, ids.argmax(1, keepdim=True), slot)
    return pad, slot, ids.gather(1, slot).clamp_min(0)
