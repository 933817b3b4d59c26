"""Parse a row of another tool: the distributions that it holds, and the tokens they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from labeler.labelsets.exchange.exchange_formats import FILL, IGNORED
from labeler.labelsets.exchange.read_rows import (
    BadRow,
    Row,
    list_column,
    nested_column,
    python_value,
)
from schemas.codec import PAD_ID
from schemas.labeled_spans import SpanRecord, span_positions, span_problem

TENSOR_COLUMNS = {
    "distillkit": ("token_ids", "top_values"),
    "axolotl": ("target_token_ids", "target_logprobs"),
}
"""Columns with the ids and the log-probabilities, one list per entry."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, kw_only=True)
class ParsedRow:
    """A row as arrays: T tokens, and n distributions of up to k ids.

    Attributes:
        input_ids: int64 [T].
        positions: int64 [n], position of the token that each distribution predicts.
        ids: int64 [n, k], PAD_ID past the end of a shorter list.
        logprobs: float64 [n, k], -inf at PAD_ID.
        spans: the row's spans; None where they follow from `positions`.
        tail: float64 [n], log of the mass outside the top-k; None if the row does not record it.
        token: float64 [n], log-probability of the actual token; None likewise.
        entropy: float64 [n], in nats; None likewise.
        log_normalizer: float64 [n]; None likewise.
    """

    input_ids: Ids
    positions: Ids
    ids: Ids
    logprobs: Floats
    spans: list[SpanRecord] | None = None
    tail: Floats | None = None
    token: Floats | None = None
    entropy: Floats | None = None
    log_normalizer: Floats | None = None

    def tokens_at(self, offset: int) -> Ids:
        """Return the token `offset` after each distribution's own [n]; PAD_ID past the ends."""
        at = self.positions + offset
        inside = (at >= 0) & (at < len(self.input_ids))
        return np.where(inside, self.input_ids[np.where(inside, at, 0)], PAD_ID)


def parse_row(row: Row, format: str, shift: int) -> ParsedRow:
    """Return a row of an exchange format as arrays; `check_row` checks the values.

    Args:
        row: its columns.
        format: `distillkit`, `axolotl` or `jsonl`.
        shift: entry t holds the distribution of the token at t + shift. In jsonl, label j belongs
            to the token `shift` after the j-th one in the spans.

    Raises:
        BadRow: columns are missing, of other types, or of lengths that do not fit.
    """
    tokens = list_column(row, "input_ids", np.int64)
    if not len(tokens):
        raise BadRow("it has no tokens")
    if format == "jsonl":
        return _parse_spans(row, tokens, shift)
    return _parse_entries(row, tokens, format, shift)


def _parse_spans(row: Row, tokens: Ids, shift: int) -> ParsedRow:
    """Parse a row with spans, and one list per position in them."""
    lengths, ids, logprobs = _topk(row, "topk_ids", "topk_logprobs")
    n = len(lengths)
    spans = _shifted_spans(row, shift)
    try:
        problem = span_problem(spans, len(tokens), n)
    except TypeError as error:
        raise BadRow("spans are not objects of start, stop, kind") from error
    if problem:
        raise BadRow(problem)
    return ParsedRow(
        input_ids=tokens,
        positions=span_positions(spans),
        ids=_square_ids(lengths, ids),
        logprobs=_square(lengths, logprobs, -np.inf),
        spans=spans,
        tail=_optional(row, "tail_logprob", n),
        token=_optional(row, "token_logprob", n),
        entropy=_optional(row, "entropy", n),
        log_normalizer=_optional(row, "log_normalizer", n),
    )


def _shifted_spans(row: Row, shift: int) -> list[SpanRecord]:
    try:
        return [
            {"start": s["start"] + shift, "stop": s["stop"] + shift, "kind": s.get("kind", "text")}
            for s in python_value(row, "spans") or []
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise BadRow("spans are not objects of start, stop, kind") from error


def _optional(row: Row, name: str, n: int) -> Floats | None:
    """Return an optional column with one value per label."""
    if python_value(row, name) is None:
        return None
    values = list_column(row, name, np.float64)
    if len(values) != n:
        raise BadRow(f"{len(values)} values of {name} for {n} labels")
    return values


def _parse_entries(row: Row, tokens: Ids, format: str, shift: int) -> ParsedRow:
    """Parse a row with an entry per token; the last one, which predicts nothing, may be missing."""
    lengths, ids, logprobs = _topk(row, *TENSOR_COLUMNS[format])
    if len(lengths) not in (len(tokens), len(tokens) - 1):
        raise BadRow(f"{len(lengths)} distributions for {len(tokens)} tokens")
    entry = np.repeat(np.arange(len(lengths)), lengths)
    stored = ~(logprobs <= FILL)  # NaN counts as stored, so that the check refuses it
    if format == "axolotl":
        mask_lengths, mask = nested_column(row, "target_mask", np.int64)
        if not np.array_equal(mask_lengths, lengths):
            raise BadRow("target_mask differs in shape from target_logprobs")
        stored &= mask != 0
    if format == "distillkit" and python_value(row, "labels") is not None:
        labels = list_column(row, "labels", np.int64)
        if len(labels) != len(tokens):
            raise BadRow(f"{len(labels)} labels for {len(tokens)} tokens")
        stored &= labels[entry] != IGNORED  # DistillKit masks entry t by label t
    position = entry + shift
    stored &= (position >= 1) & (position < len(tokens))  # the first token has no context
    counts = np.bincount(entry[stored], minlength=len(lengths))
    labeled = counts > 0
    return ParsedRow(
        input_ids=tokens,
        positions=np.flatnonzero(labeled) + shift,
        ids=_square_ids(counts[labeled], ids[stored]),
        logprobs=_square(counts[labeled], logprobs[stored], -np.inf),
    )


def _topk(row: Row, ids: str, logprobs: str) -> tuple[Ids, Ids, Floats]:
    """Return the lengths [n] of the lists in two columns of one shape, and the joined values."""
    lengths, id_values = nested_column(row, ids, np.int64)
    logprob_lengths, logprob_values = nested_column(row, logprobs, np.float64)
    if not np.array_equal(lengths, logprob_lengths):
        raise BadRow(f"{ids} and {logprobs} differ in shape")
    return lengths, id_values, logprob_values


def _square(lengths: Ids, values: NDArray[Number], fill: float) -> NDArray[Number]:
    """Return joined lists as rows [n, k], padded with `fill` on the right."""
    real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    square = np.full(real.shape, fill, values.dtype)
    square[real] = values
    return square


def _square_ids(lengths: Ids, ids: Ids) -> Ids:
    if (ids < 0).any():  # the file's own padding would pass for PAD_ID
        raise BadRow(f"a label's id is negative: {ids.min()}")
    return _square(lengths, ids, PAD_ID)
