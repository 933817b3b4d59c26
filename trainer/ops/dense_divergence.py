"""Exact divergences: the teacher's whole distribution from its state and head, chunk by chunk.

Beside the student's logits of a chunk, the teacher's are made from its hidden states and its head.
Value and gradient of the divergence are over all ids, and neither side's logits of all positions
ever exist. Nothing is differentiated by PyTorch inside a chunk: with f'(q, p) the derivative of a
divergence sum f(q, p) by the student's p = softmax(z / T), its gradient on the logits z is

    p (f' - sum p f') / T
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.ops.chunked import Settings, cast_operands, chunk_logits, compute_dtype
from trainer.ops.label_logprobs import default_chunk_bytes
from trainer.ops.products import operand_dtype, project_backward, slices

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"]
BUFFERS = 5
"""[chunk, vocab] tensors alive at once: both sides' logits, their mixture, what is made of it."""


@dataclass(frozen=True, kw_only=True)
class TeacherHead:
    """A teacher's output projection, as constants.

    Attributes:
        weight: [V_t, d_t]. For codes in a basis (`schemas.state_codec`), multiply the basis in:
            codes @ (weight @ synthesis.T).T are the logits of the states less their mean's.
        bias: [V_t], or None.
        scale: factor on the logits before the cap.
        softcap: caps logits as softcap * tanh(z / softcap), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings:
    """The arguments of `linear_divergence` that are not tensors."""

    divergence: Divergence
    mixing: float
    student: Settings
    teacher: Settings


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    states: Tensor,
    head: TeacherHead,
    *,
    divergence: Divergence = "forward_kl",
    mixing: float = 0.5,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    chunk_bytes: int | None = None,
    valid_vocab: int | None = None,
) -> Tensor:
    """Return the divergence between teacher Q and student P over the whole vocabulary.

        Q = softmax(z_t / T) of states and head;  P = softmax(z / T) of hidden and weight
        T^2 D(Q, P), with D of `trainer.losses.divergences`

    T^2 keeps the size of gradients independent of T (arXiv 1503.02531).

    Args:
        hidden: [n, d], floating point; weight, bias, low_rank, scale, softcap, chunk_size and
            chunk_bytes as in `linear_label_logprobs`.
        states: [n, d_t] of any dtype, integers included; no gradient reaches them.
        head: the teacher's.
        divergence: its name.
        mixing: beta of `jsd`, alpha of the skewed ones.
        temperature: T.
        valid_vocab: ids that exist for both sides; both distributions are over these alone.

    Returns:
        [n] in nats, float64 if hidden or weight is float64, else float32.

    Raises:
        ValueError: shapes, dtypes or settings that do not fit.
    """
    vocab = min(len(weight), len(head.weight)) if valid_vocab is None else valid_vocab
    low, up = (None, None) if low_rank is None else low_rank
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}")
    if states.shape != (len(hidden), head.weight.shape[1]):
        raise ValueError(
            f"states must be [{len(hidden)}, {head.weight.shape[1]}] for the teacher's head, got "
            f"{tuple(states.shape)}"
        )
    if not 1 <= vocab <= min(len(weight), len(head.weight)):
        raise ValueError(
            f"valid_vocab must be in 1..{min(len(weight), len(head.weight))} (rows of both heads), "
            f"got {vocab}"
        )
    if divergence not in get_args(Divergence):
        raise ValueError(
            f"there is no divergence {divergence!r}: use {', '.join(get_args(Divergence))}"
        )
    if divergence in ("jsd", "skew_kl", "skew_reverse_kl") and not 0 < mixing < 1:
        raise ValueError(f"mixing must be above 0 and below 1, got {mixing}")
    for name, value in (
        *(("temperature", temperature), ("scale", scale), ("softcap", softcap)),
        *(("the teacher's scale", head.scale), ("the teacher's softcap", head.softcap)),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    dtype = compute_dtype(hidden, weight)
    if chunk_size is None:
        budget = default_chunk_bytes(hidden.device) if chunk_bytes is None else chunk_bytes
        chunk_size = max(1, budget // (BUFFERS * vocab * dtype.itemsize))
    operands = operand_dtype(hidden.device, dtype)
    student, teacher = (
        Settings(
            temperature=temperature,
            scale=factor,
            softcap=cap,
            vocab=vocab,
            chunk_size=chunk_size,
            operands=operands,
        )
        for factor, cap in ((scale, softcap), (head.scale, head.softcap))
    )
    settings = DivergenceSettings(
        divergence=divergence, mixing=mixing, student=student, teacher=teacher
    )
    inputs = _Inputs(hidden, weight, bias, low, up, states, head.weight, head.bias)
    divergences: Tensor = _uncompiled(inputs, settings)
    return divergences


class ChunkedDivergence(torch.autograd.Function):
    """Computes `linear_divergence`, which checks its inputs; backward recomputes the logits."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        states: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        settings: DivergenceSettings,
    ) -> Tensor:
        """Return the divergence [n], one chunk at a time."""
        given = _Inputs(hidden, weight, bias, low, up, states, teacher_weight, teacher_bias)
        value = hidden.new_empty(len(hidden), dtype=compute_dtype(hidden, weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, log_p, log_q, _ in _log_softmaxes(given, settings, value.dtype):
                value[rows] = _value(settings, log_q, log_p)
        value.mul_(settings.student.temperature**2)
        ctx.save_for_backward(*given)
        ctx.settings = settings
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the logits' gradient of a chunk in closed form, and from it the inputs'."""
        given = _Inputs(*ctx.saved_tensors)
        hidden, weight, _, low, up = ctx.saved_tensors[:5]
        settings, dtype = ctx.settings, upstream.dtype
        temperature, softcap = settings.student.temperature, settings.student.softcap
        scale, vocab = settings.student.scale, settings.student.vocab
        want_h, want_w, want_b, want_low, want_up = ctx.needs_input_grad[:5]
        grad_h = torch.empty_like(hidden) if want_h else None
        grad_w = weight.new_zeros(weight.shape, dtype=dtype) if want_w else None
        grad_b = weight.new_zeros(len(weight), dtype=dtype) if want_b else None
        grad_low = torch.empty_like(low) if want_low else None
        grad_up = up.new_zeros(up.shape, dtype=dtype) if want_up else None
        factors = cast_operands(settings.student, hidden, weight, low, up)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, log_p, log_q, lse in _log_softmaxes(given, settings, dtype):
                g = _slope(settings, log_q, log_p)
                # p (f' - sum p f') / T, times T^2 and what arrives from above.
                g.addcmul_(torch.exp(log_p, out=log_q), g.sum(1, keepdim=True), value=-1)
                g.mul_(upstream[rows, None] * (temperature * scale))
                if softcap is not None:
                    z = log_p.add_(lse[:, None]).mul_(temperature / softcap)
                    g.mul_(z.square_().neg_().add_(1))  # derivative of tanh
                if grad_b is not None:
                    grad_b[:vocab] += g.sum(0)
                for x, table, of_rows, of_table in (
                    (factors[0], factors[1], grad_h, grad_w),
                    (factors[2], factors[3], grad_low, grad_up),
                ):
                    if x is not None and table is not None:
                        of_rows = None if of_rows is None else of_rows[rows]
                        project_backward(g, x[rows], table[:vocab], of_rows, of_table)
        grads = grad_h, grad_w, grad_b, grad_low, grad_up
        inputs = ctx.saved_tensors[:5]
        rounded = (None if g is None else g.to(t.dtype) for g, t in zip(grads, inputs, strict=True))
        return *rounded, *(None,) * 4


_apply: Callable[..., Tensor] = ChunkedDivergence.apply


@torch.compiler.disable  # type: ignore[untyped-decorator]  # as `linear_label_logprobs`
def _uncompiled(inputs: _Inputs, settings: DivergenceSettings) -> Tensor:
    return _apply(*inputs, settings)


class _Inputs(NamedTuple):
    """The tensors of the op; of the student's, `bias`, `low` and `up` may be None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    low: Tensor | None
    up: Tensor | None
    states: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None


class _Context(Protocol):
    """The part of PyTorch's context that the op uses; `settings` is ours."""

    settings: DivergenceSettings
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _log_softmaxes(
    given: _Inputs, settings: DivergenceSettings, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield of each chunk: rows, log P, log Q [m, vocab], and the student's log-sum-exp [m].

    The two are buffers that the next chunk overwrites, and the caller may.
    """
    student, teacher = settings.student, settings.teacher
    bias, teacher_bias = given.bias, given.teacher_bias
    hidden, weight = cast_operands(student, given.hidden, given.weight)
    low, up = cast_operands(student, given.low, given.up)
    states, teacher_weight = cast_operands(teacher, given.states, given.teacher_weight)
    n = len(hidden)
    buffers = hidden.new_empty(2, min(n, student.chunk_size), student.vocab, dtype=dtype)
    for rows in slices(n, student.chunk_size):
        log_p, log_q = buffers[:, : rows.stop - rows.start]
        chunk_logits(rows, hidden, weight, bias, low, up, student, out=log_p)
        nothing = None, None
        chunk_logits(rows, states, teacher_weight, teacher_bias, *nothing, teacher, out=log_q)
        if student.temperature != 1.0:
            log_p.div_(student.temperature)
            log_q.div_(student.temperature)
        log_q.sub_(log_q.logsumexp(1, keepdim=True))
        lse = log_p.logsumexp(1)
        yield rows, log_p.sub_(lse[:, None]), log_q, lse


def _value(settings: DivergenceSettings, log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return the divergence [m] of log-probabilities [m, vocab]."""
    share = settings.mixing
    match settings.divergence:
        case "forward_kl":
            return _kl(log_q, log_p)
        case "reverse_kl":
            return _kl(log_p, log_q)
        case "jsd":
            mixed = _mix(log_q, log_p, share)
            return share * _kl(log_q, mixed) + (1 - share) * _kl(log_p, mixed)
        case "skew_kl":
            return _kl(log_q, _mix(log_q, log_p, share))
        case "skew_reverse_kl":
            return _kl(log_p, _mix(log_p, log_q, share))
        case "tvd":
            return (log_q.exp() - log_p.exp()).abs_().sum(1) / 2


def _slope(settings: DivergenceSettings, log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return p f'(q, p) [m, vocab], up to a constant times p, which changes no gradient."""
    share = settings.mixing
    match settings.divergence:
        case "forward_kl":
            return log_q.exp().neg_()
        case "reverse_kl":
            return (log_p - log_q).mul_(log_p.exp())
        case "jsd":
            over = log_p - _mix(log_q, log_p, share)
            return over.mul_(log_p.exp()).mul_(1 - share)
        case "skew_kl":
            return (log_p - _mix(log_q, log_p, share)).add_(log_q).exp_().mul_(share - 1)
        case "skew_reverse_kl":
            over = log_p - _mix(log_p, log_q, share)
            return over.sub_(over.exp(), alpha=share).mul_(log_p.exp())
        case "tvd":
            p = log_p.exp()
            return (p - log_q.exp()).sign_().mul_(p).div_(2)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a - log_b).mul_(log_a.exp()).sum(1)


def _mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Return log(share a + (1 - share) b)."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
