"""Engine outputs to label arrays: the true top-k, the tail, the actual token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.rendering.spans import Span
from schemas import PAD_ID, Labels, labeled_spans
from schemas.draws import count_draws

TAIL_FLOOR = 1e-6
EXACT_TAIL = "sum over the other ids in float32, in the engine"
DERIVED_TAIL = "1 - sum of float32 logprobs in float64, clamped at 1e-6"
"""Values of `tail_source`: rows made in the engine, and engines that report only the top-k."""


class CaptureError(Exception):
    """The engine's output cannot become a label set's row; the row becomes a reject."""


class FlatLogprobs(Protocol):
    """The fields of vLLM's `FlatLogprobs` that are read here."""

    start_indices: Sequence[int]
    end_indices: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]


def positions(spans: Sequence[Span]) -> NDArray[np.int64]:
    """Return the labeled positions t [n] of a sequence, in span order."""
    return labeled_spans.positions([s.start for s in spans], [s.stop for s in spans])


def flat_rows(
    flat: FlatLogprobs, *, skip: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Convert vLLM's FlatLogprobs to ids and logprobs [n, 1 + k']; column 0 is the actual token.

    Args:
        flat: `prompt_logprobs` of a prompt or `logprobs` of a generation, all rows equally wide.
        skip: number of empty rows at the start (1 for a prompt, whose first token has no label).

    Raises:
        CaptureError: rows differ in width, or rows other than the first `skip` are empty.
    """
    widths = np.subtract(flat.end_indices, flat.start_indices)
    if widths[:skip].any() or (widths[skip:] != widths[-1]).any():
        raise CaptureError("the engine returned positions of unequal width")
    rows = (len(widths) - skip, int(widths[-1]) if len(widths) > skip else 1)
    ids = np.asarray(flat.token_ids, dtype=np.int32).reshape(rows)
    return ids, np.asarray(flat.logprobs, dtype=np.float32).reshape(rows)


def labels_from_rows(
    ids: NDArray[np.int32],
    logprobs: NDArray[np.float32],
    tokens: NDArray[np.int32],
    *,
    k: int,
    vocab_size: int,
) -> Labels:
    """Return labels from rows with the actual token in column 0 and the most likely ids after it.

    Ids at or past `vocab_size` (a padded head) are dropped; their mass is part of the tail.

    Args:
        ids: [n, 1 + k'] with k' >= k, over-requested so that k real ids remain.
        logprobs: [n, 1 + k'], raw, T = 1.
        tokens: [n] the tokens that the sequence has at these positions.
        k: ids to keep per position.
        vocab_size: number of real token ids.

    Raises:
        CaptureError: a logprob is NaN, or column 0 is not the actual token (a shifted label).
    """
    _check_rows(ids, logprobs, tokens, vocab_size)
    top_ids, top = drop_padding(ids[:, 1:], logprobs[:, 1:], k=k, vocab_size=vocab_size)
    token = logprobs[:, 0]
    return Labels(
        topk_ids=top_ids,
        topk_logprobs=top,
        tail_logprob=derived_tail(top_ids, top, tokens, token, vocab_size),
        token_logprob=token,
    )


def labels_from_tensors(
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    tokens: NDArray[np.int32],
    *,
    k: int,
    vocab_size: int,
) -> Labels:
    """Return labels from rows that `label_rows.gather_rows` made; their arrays are views.

    Args:
        ids: [n, 1 + k + draws], the actual token first, drawn ids last.
        values: [n, 1 + k + 3 + temperatures], its logprob, the ids' logprobs, then tail, entropy,
            normalizer and the tails at further temperatures.
        tokens: [n] the tokens that the sequence has at these positions.
        k: ids per position, asked ones included.
        vocab_size: number of real token ids.

    Raises:
        CaptureError: a value is NaN, or column 0 is not the actual token (a shifted label).
    """
    _check_rows(ids, values, tokens, vocab_size)
    drawn = count_draws(ids[:, 1 + k :]) if ids.shape[1] > 1 + k else (None, None)
    return Labels(
        topk_ids=ids[:, 1 : 1 + k],
        topk_logprobs=values[:, 1 : 1 + k],
        tail_logprob=values[:, 1 + k],
        token_logprob=values[:, 0],
        entropy=values[:, 2 + k],
        log_normalizer=values[:, 3 + k],
        sample_ids=drawn[0],
        sample_counts=drawn[1],
        tempered_tails=values[:, 4 + k :] if values.shape[1] > 4 + k else None,
    )


def with_states(labels: Labels, states: NDArray[Any], layers: int) -> Labels:
    """Return labels with hidden states, float32 [n, layers, d].

    Args:
        labels: of n positions.
        states: [n, layers * d]; int16 holds the bits of bfloat16.
        layers: states per position.

    Raises:
        CaptureError: a state is not finite.
    """
    if states.dtype == np.int16:
        states = (states.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    wide = states.astype(np.float32, copy=False).reshape(len(labels), layers, -1)
    if not np.isfinite(wide).all():
        raise CaptureError("the engine returned hidden states that are not finite")
    return dataclasses.replace(labels, states=wide)


def _check_rows(
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    tokens: NDArray[np.int32],
    vocab_size: int,
) -> None:
    if ids.shape[0] != len(tokens):
        raise CaptureError(f"the engine returned {ids.shape[0]} positions, expected {len(tokens)}")
    if np.isnan(values).any():
        raise CaptureError("the engine returned NaN logprobs")
    if (ids[:, 0] != tokens).any():
        raise CaptureError("the engine's labels belong to other tokens: they are shifted")
    if (tokens >= vocab_size).any():
        raise CaptureError(f"the engine generated an id outside the tokenizer: {tokens.max()}")


def nucleus(
    labels: Labels, *, mass: float, min_k: int, temperatures: Sequence[float] = ()
) -> Labels:
    """Keep the most likely ids that hold `mass`, at least `min_k`; move the rest to the tail.

    The id that crosses the mass is kept (Holtzman et al. 2020), and shorter lists end in PAD_ID.
    Tails at `temperatures`, if there are any, follow.
    """
    probabilities = np.exp(labels.topk_logprobs.astype(np.float64))
    before = np.cumsum(probabilities, axis=1) - probabilities
    keep = (before < mass) | (np.arange(probabilities.shape[1]) < min_k)
    return _cut(labels, keep, temperatures)


def pad_asked(asked: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    """Return lists of ids that were asked for as [n, width], padded with -1."""
    padded = [[*ids, *[-1] * (width - len(ids))] for ids in asked]
    return np.array(padded, np.int64).reshape(-1, width)


def without_asked(labels: Labels, k: int) -> Labels:
    """Return labels without the ids after the top k, which were asked for; the tail has them."""
    shape = labels.topk_ids.shape
    return _cut(labels, np.broadcast_to(np.arange(shape[1]) < k, shape))


def _cut(
    labels: Labels, keep: NDArray[np.bool_], temperatures: Sequence[float] | None = None
) -> Labels:
    """Keep the first ids of each list, a mask [n, k]; move the mass of the rest to the tails.

    Without `temperatures`, tails at further temperatures are dropped.
    """
    keep = keep & (labels.topk_ids != PAD_ID)
    logs = labels.topk_logprobs.astype(np.float64)
    tail = _larger_tail(labels.tail_logprob, logs, keep)
    tempered = None
    if labels.tempered_tails is not None and temperatures is not None:
        columns = []
        for temperature, known in zip(temperatures, labels.tempered_tails.T, strict=True):
            scaled = logs / temperature
            with np.errstate(divide="ignore"):
                shift = np.log(-np.expm1(known.astype(np.float64)))
            scaled += (shift - np.logaddexp.reduce(scaled, axis=1))[:, None]
            columns.append(_larger_tail(known, scaled, keep))
        tempered = np.stack(columns, 1).astype(np.float32)
    widest = int(keep.sum(axis=1).max(initial=1))
    return dataclasses.replace(
        labels,
        topk_ids=np.where(keep, labels.topk_ids, np.int32(PAD_ID))[:, :widest],
        topk_logprobs=np.where(keep, labels.topk_logprobs, np.float32(-np.inf))[:, :widest],
        tail_logprob=tail.astype(np.float32),
        tempered_tails=tempered,
    )


def _larger_tail(
    tail: NDArray[np.floating], logs: NDArray[np.float64], keep: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the log of a tail [n] and of the ids [n, k] that are not kept."""
    cut = np.where(keep, 0.0, np.exp(logs)).sum(axis=1)
    with np.errstate(divide="ignore"):  # log 0 is -inf: nothing was cut, or there was no tail
        larger: NDArray[np.float64] = np.logaddexp(tail.astype(np.float64), np.log(cut))
    return larger


def drop_padding(
    ids: NDArray[np.int32], logprobs: NDArray[np.float32], *, k: int, vocab_size: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the first k real ids of each row, in order; PAD_ID and -inf where fewer are left."""
    padded = ids >= vocab_size
    if padded.any():
        order = np.argsort(padded, axis=1, kind="stable")
        ids = np.where(padded, np.int32(PAD_ID), ids)
        logprobs = np.where(padded, np.float32(-np.inf), logprobs)
        ids = np.take_along_axis(ids, order, axis=1)
        logprobs = np.take_along_axis(logprobs, order, axis=1)
    return ids[:, :k], logprobs[:, :k]


def derived_tail(
    ids: NDArray[np.int32],
    logprobs: NDArray[np.float32],
    tokens: NDArray[np.int32],
    token_logprob: NDArray[np.float32],
    vocab_size: int,
) -> NDArray[np.float32]:
    """Return the log of the mass outside the top-k [n] for engines that report only the top-k.

    The sum is taken in float64. The rest can still be zero or less because the float32 terms are
    rounded, so it is clamped at 1e-6, and at the actual token's mass where that token is outside.
    Where the ids cover the vocabulary it is -inf, unless padding of the head has mass.
    """
    rest = 1.0 - np.exp(logprobs.astype(np.float64)).sum(axis=1)
    if ids.shape[1] >= vocab_size:  # outside is at most the padding of the head
        with np.errstate(divide="ignore"):
            tail: NDArray[np.float64] = np.log(np.where(rest > TAIL_FLOOR, rest, 0.0))
            return tail.astype(np.float32)
    outside = ~(ids == tokens[:, None]).any(axis=1)
    floor = np.where(outside, np.exp(token_logprob.astype(np.float64)), 0.0)
    tail = np.log(np.maximum(rest, np.maximum(floor, TAIL_FLOOR)))
    return tail.astype(np.float32)
