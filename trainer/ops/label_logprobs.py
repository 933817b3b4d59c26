"""Linear head + label log-probabilities in one pass, without ever holding [n, V] logits.

Every label loss needs only k + 1 numbers per position: the student's log-probabilities of the k
labeled ids and of everything else together. This op produces them straight from the last hidden
state and the head's weight, in chunks of tokens, and recomputes the logits in backward.

The tail is a log-sum-exp over the *other* ids, never `1 - sum`: where the labeled ids hold almost
all the mass, `1 - sum` is pure rounding error, and its gradient with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.ops.chunked import ChunkedLabelLogprobs, Settings, buffers, compute_dtype
from trainer.ops.products import operand_dtype

CHUNK_BYTES = 64 * 2**20
"""Bytes for all [chunk, V] buffers together, by default on a CPU."""
GPU_CHUNK_BYTES = 2**29
"""The same on a GPU, where each chunk reads the whole head three times and adds to its gradient.
Chunks four times as large are a tenth faster and take three times the memory (docs/gpu.md)."""

LabelLogprobs = tuple[Tensor, Tensor, Tensor | None]
"""logp [n, k] of the labeled ids, log_rest [n], target_logp [n] or None."""


def default_chunk_bytes(device: torch.device) -> int:
    """Return the budget for the [chunk, V] buffers on a device."""
    return GPU_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES


def linear_label_logprobs(
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
    chunk_size: int | None = None,
    chunk_bytes: int | None = None,
    valid_vocab: int | None = None,
    unique_ids: bool = False,
) -> LabelLogprobs:
    """Return log-probabilities of the labeled ids, of all other ids together, and of the target.

    Equivalent to the following, but in O(chunk * V) memory and exact where the tail is tiny:

        z = hidden @ weight.T + low @ up.T + bias;  z = scale * z
        z = softcap * tanh(z / softcap);  z[:, valid_vocab:] = -inf
        p = softmax(z / temperature)
        logp = log p[ids];  log_rest = log(sum of p over all columns not in ids)
        target_logp = log_softmax(z)[target]            # always at T = 1

    Args:
        hidden: [n, d], floating point, as are weight, bias, low and up; dtypes may differ.
        weight: [V, d], the head's; a tied one gets gradients from both places.
        ids: int64 [n, k], unique within a row; k = 0 is allowed (log_rest is then 0). An id of -1
            is padding (ragged top-k): its logp is -inf, it passes no gradient, and it removes no
            column from the rest.
        target: int64 [n]; it is never removed from the rest, labeled or not.
        temperature: of logp and log_rest.
        bias: [V].
        low_rank: low [n, r] and up [V, r], a LoRA adapter on the head: with adapters A [r, d] and
            B [V, r], low = s * (hidden @ A.T) and up = B. Neither B A nor the sum is ever formed.
        scale: factor on the logits before the cap (Cohere's `logit_scale`, 1 / Granite's
            `logits_scaling`).
        softcap: caps logits as above (Gemma).
        chunk_size: tokens per chunk; by default as many as fit `chunk_bytes`.
        chunk_bytes: budget for all logits-wide buffers; by default that of `default_chunk_bytes`.
            One is alive at T = 1, two with softcap or with a target at T != 1, three with both.
        valid_vocab: columns at or past it do not exist for the student (a head padded past the
            tokenizer); their weight gets a zero gradient.
        unique_ids: the ids are known to be unique within a row, so skip this check on CPU tensors.

    Returns:
        logp [n, k], log_rest [n], target_logp [n] or None, in nats, float64 if hidden or weight is
        float64, else float32. If the ids cover the whole vocabulary, log_rest is -inf and any
        gradient that arrives for it is dropped.

    Math is in the returned dtype whatever the inputs, inside `torch.autocast` as outside it.
    Gradients reach hidden, weight, bias, low and up, only where required; those of weight and up
    accumulate in the returned dtype and are rounded once, at the end. On CUDA, operands that are
    both bfloat16, and all operands inside an autocast to it, are multiplied in bfloat16 (logits
    gradient included) with float32 results.

    Raises:
        ValueError: shapes, dtypes or settings that do not fit and, for CPU tensors, ids or targets
            out of range and ids repeated in a row. On other devices these values are not read,
            which would stall the device: an id past V trips the device's own index check, one in
            [valid_vocab, V) is undefined, and a repeated id gives a wrong log_rest.
    """
    vocab = weight.shape[0] if valid_vocab is None else valid_vocab
    low, up = (None, None) if low_rank is None else low_rank
    _check_shapes(hidden, weight, ids, target, bias, low, up, vocab)
    for name, value in (("temperature", temperature), ("scale", scale), ("softcap", softcap)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, size in (("chunk_size", chunk_size), ("chunk_bytes", chunk_bytes)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    dtype = compute_dtype(hidden, weight)
    if chunk_size is None:
        budget = default_chunk_bytes(hidden.device) if chunk_bytes is None else chunk_bytes
        alive = buffers(temperature=temperature, softcap=softcap, with_target=target is not None)
        chunk_size = max(1, budget // (alive * vocab * dtype.itemsize))
    settings = Settings(
        temperature=temperature,
        scale=scale,
        softcap=softcap,
        vocab=vocab,
        chunk_size=chunk_size,
        operands=operand_dtype(hidden.device, dtype),
    )
    logp, log_rest, target_logp = _checked_apply(
        hidden, weight, bias, low, up, ids, target, settings, unique_ids
    )
    return logp, log_rest, None if target is None else target_logp


_apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = ChunkedLabelLogprobs.apply


# A Python loop over chunks: torch.compile would only unroll it, so it breaks the graph here, once.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _checked_apply(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low: Tensor | None,
    up: Tensor | None,
    ids: Tensor,
    target: Tensor | None,
    settings: Settings,
    unique_ids: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if ids.device.type == "cpu":
        _check_values(ids, target, settings.vocab, unique_ids=unique_ids)
    return _apply(hidden, weight, bias, low, up, ids, target, settings)


def _check_shapes(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    target: Tensor | None,
    bias: Tensor | None,
    low: Tensor | None,
    up: Tensor | None,
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
    if low is not None and up is not None:
        fits = low.dim() == up.dim() == 2 and low.shape[1] == up.shape[1]
        if not fits or len(low) != n or len(up) != full:
            raise ValueError(
                f"low_rank must be [{n}, r] and [{full}, r], got {tuple(low.shape)} and "
                f"{tuple(up.shape)}"
            )
    if not all(t.is_floating_point() for t in (hidden, weight, bias, low, up) if t is not None):
        raise ValueError("hidden, weight, bias and low_rank must be floating point")


def _check_values(ids: Tensor, target: Tensor | None, vocab: int, *, unique_ids: bool) -> None:
    if bool(((ids < -1) | (ids >= vocab)).any()):
        raise ValueError(f"ids must be in 0..{vocab - 1}, or -1 for padding")
    if not unique_ids:
        ordered = ids.sort(1).values
        if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
            raise ValueError(
                "ids must be unique within a row: a repeated id would be counted twice"
            )
    if target is not None and bool(((target < 0) | (target >= vocab)).any()):
        raise ValueError(f"target must be in 0..{vocab - 1}: select positions, do not pass -100")
