"""Check a parsed row against the invariants of labels, and make labels of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.engines.capture import DERIVED_TAIL, derived_tail
from labeler.labelsets.exchange.parse_row import Floats, ParsedRow
from labeler.labelsets.exchange.read_rows import BadRow
from schemas.codec import PAD_ID, Labels

IMPORTED_TAIL = f"imported:derived ({DERIVED_TAIL})"
RECORDED = "imported:stated in the file"
DERIVED_ENTROPY = "top-k and tail"
UNKNOWN_TOKEN = (
    "token_logprob outside the top-k is unknown: its upper bound is stored, the lesser of the tail "
    "and the smallest top-k logprob"
)
SLACK = 1e-3
"""Rounding allowed: a logprob may exceed 0 by this much, the mass of a position 1 by ten times."""


def check_row(row: ParsedRow, vocab_size: int) -> ParsedRow:
    """Return the row with the ids of each label in descending order of their logprobs.

    Raises:
        BadRow: the row breaks an invariant of docs/format.md that reordering cannot restore.
    """
    _check_ids(row, vocab_size)
    _check_values(row)
    return _sorted(row)


def _check_ids(row: ParsedRow, vocab_size: int) -> None:
    outside = (row.input_ids < 0) | (row.input_ids >= vocab_size)
    if outside.any():
        id = row.input_ids[outside][0]
        raise BadRow(f"an input id is outside the tokenizer: {id} of {vocab_size}")
    too_large = row.ids >= vocab_size
    if too_large.any():
        id = row.ids[too_large][0]
        raise BadRow(f"a label's id is outside the tokenizer: {id} of {vocab_size}")
    empty = (row.ids == PAD_ID).all(axis=1)
    if empty.any():
        raise BadRow(f"a label has no ids{_where(row, empty)}")
    ordered = np.sort(row.ids, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD_ID)
    if repeated.any():
        raise BadRow(f"a label repeats an id{_where(row, repeated)}")


def _check_values(row: ParsedRow) -> None:
    for name, values in (("logprob", row.logprobs), ("tail", row.tail), ("token", row.token)):
        if values is not None and np.isnan(values).any():
            raise BadRow(f"a {name} is not a number{_where(row, np.isnan(values))}")
    positive = row.logprobs > SLACK
    if positive.any():
        raise BadRow(
            f"a logprob is above 0: {row.logprobs.max():.4g}{_where(row, positive)}; "
            "logits and probabilities are not log-probabilities"
        )
    mass = np.exp(row.logprobs).sum(axis=1)
    excess = mass > 1 + 10 * SLACK
    if excess.any():
        raise BadRow(f"probabilities add up to {mass.max():.4f}{_where(row, excess)}")


def _where(row: ParsedRow, bad: NDArray[np.bool_]) -> str:
    """Name the first position with a true entry in `bad`, [n] or [n, k]."""
    first = np.argmax(bad.reshape(len(row.positions), -1).any(axis=1))
    return f" at position {row.positions[first]}"


def _sorted(row: ParsedRow) -> ParsedRow:
    # Padding comes last, after real ids of probability 0.
    order = np.lexsort((-row.logprobs, row.ids == PAD_ID), axis=1)
    return replace(
        row,
        ids=np.take_along_axis(row.ids, order, 1),
        logprobs=np.minimum(np.take_along_axis(row.logprobs, order, 1), 0.0),
    )


def make_labels(row: ParsedRow, vocab_size: int) -> tuple[Labels, int]:
    """Return the labels of a checked row, and the number whose actual token's logprob is unknown.

    The tail is the file's own, or 1 - sum (`IMPORTED_TAIL`). An actual token outside the top-k
    without a logprob of its own gets the largest possible one (`UNKNOWN_TOKEN`).
    """
    ids, logprobs = row.ids.astype(np.int32), row.logprobs.astype(np.float32)
    tokens = row.tokens_at(0).astype(np.int32)
    tail = row.tail
    if tail is None:
        known = np.full(len(tokens), -np.inf) if row.token is None else row.token
        tail = derived_tail(ids, logprobs, tokens, known.astype(np.float32), vocab_size).astype(
            np.float64
        )
    token, unknown = row.token, 0
    if token is None:
        token, unknown = _token_logprobs(row, tokens, tail)
    return Labels(
        topk_ids=ids,
        topk_logprobs=logprobs,
        tail_logprob=np.minimum(tail, 0.0).astype(np.float32),
        token_logprob=np.minimum(token, 0.0).astype(np.float32),
        entropy=_float32(row.entropy),
        log_normalizer=_float32(row.log_normalizer),
    ), unknown


def _token_logprobs(row: ParsedRow, tokens: NDArray[np.int32], tail: Floats) -> tuple[Floats, int]:
    """Return the actual tokens' logprobs [n], bounded where unknown, and the number unknown."""
    hit = row.ids == tokens[:, None]
    inside = hit.any(axis=1)
    found = np.where(hit, row.logprobs, -np.inf).max(axis=1, initial=-np.inf)
    smallest = np.where(row.ids == PAD_ID, np.inf, row.logprobs).min(axis=1, initial=np.inf)
    bound = np.minimum(smallest, tail)
    return np.where(inside, found, bound), int((~inside).sum())


def _float32(values: Floats | None) -> NDArray[np.float32] | None:
    return None if values is None else values.astype(np.float32)
