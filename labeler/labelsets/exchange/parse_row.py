"""A foreign row understood: where its distributions stand, and what a label set keeps of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.engines.capture import DERIVED_TAIL, derived_tail
from labeler.labelsets.exchange.exchange_formats import FILL
from labeler.labelsets.exchange.read_rows import BadRow, Row, flat, nested, plain
from labeler.labelsets.exchange.tensor_rows import IGNORED
from schemas import PAD_ID, Labels
from schemas.labeled_spans import span_positions, span_problem

IMPORTED_TAIL = f"imported:derived ({DERIVED_TAIL})"
STATED = "imported:stated in the file"
DERIVED_ENTROPY = "top-k and tail"
UNKNOWN_TOKEN = (
    "token_logprob outside the top-k is not known: the most it can be, the least of tail and top-k"
)
ABOVE = 1e-3
"""A logprob may be above 0 by so much, of rounding; the mass of a position above 1 by ten times."""
TENSOR_COLUMNS = {
    "distillkit": ("token_ids", "top_values"),
    "axolotl": ("target_token_ids", "target_logprobs"),
}
KNOWN = {
    "tail": "tail_logprob",
    "token": "token_logprob",
    "entropy": "entropy",
    "log_normalizer": "log_normalizer",
}
"""What rows with spans may say beside the top-k: fields of `Foreign`, and their columns."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What a row says, in arrays, before it is checked.

    Attributes:
        input_ids: int64 [T].
        positions: int64 [n], the token that each distribution is of.
        ids: int64 [n, k], PAD_ID past the end of a shorter list; logprobs: float64 [n, k].
        spans: as in the row, or None where they follow from the positions.
        tail, token, entropy, log_normalizer: float64 [n], or None where they are not known.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: Floats
    spans: list[dict[str, Any]] | None = None
    tail: Floats | None = None
    token: Floats | None = None
    entropy: Floats | None = None
    log_normalizer: Floats | None = None

    def tokens_at(self, shift: int) -> NDArray[np.int64]:
        """The token `shift` places after each distribution's [n]; PAD_ID where there is none."""
        at = self.positions + shift
        inside = (at >= 0) & (at < len(self.input_ids))
        return np.where(inside, self.input_ids[np.where(inside, at, 0)], PAD_ID)


def read_foreign(row: Row, form: str, shift: int) -> Foreign:
    """A row of a format as arrays.

    Args:
        row: its columns.
        form: `distillkit`, `axolotl` or `jsonl`.
        shift: the distribution at entry t is of the token at t + shift (jsonl: the j-th one is of
            the token `shift` places after the j-th in the spans).

    Raises:
        BadRow: columns are missing, of other types, or disagree about lengths.
    """
    tokens = flat(row, "input_ids", np.int64)
    if not len(tokens):
        raise BadRow("it has no tokens")
    return _spans_row(row, tokens, shift) if form == "jsonl" else _entries(row, tokens, form, shift)


def _spans_row(row: Row, tokens: NDArray[np.int64], shift: int) -> Foreign:
    lengths, ids, logs = _top(row, "topk_ids", "topk_logprobs")
    spans = plain(row.get("spans")) or []
    try:
        moved = [
            {"start": s["start"] + shift, "stop": s["stop"] + shift, "kind": s.get("kind", "text")}
            for s in spans
        ]
        problem = span_problem(moved, len(tokens), len(lengths))
    except (TypeError, KeyError, AttributeError) as error:
        raise BadRow("spans are not objects of start, stop, kind") from error
    if problem:
        raise BadRow(problem)
    ids, logs = _square_ids(lengths, ids), _square(lengths, logs, -np.inf)
    known: dict[str, Floats] = {}
    for field, name in KNOWN.items():
        if plain(row.get(name)) is not None:
            known[field] = flat(row, name, np.float64)
            if len(known[field]) != len(lengths):
                raise BadRow(f"{len(known[field])} values of {name} for {len(lengths)} labels")
    return Foreign(
        input_ids=tokens,
        positions=span_positions(moved),
        ids=ids,
        logprobs=logs,
        spans=moved,
        **known,
    )


def _entries(row: Row, tokens: NDArray[np.int64], form: str, shift: int) -> Foreign:
    """Rows with an entry a token; one for the last token, which nothing follows, may be missing."""
    lengths, ids, logs = _top(row, *TENSOR_COLUMNS[form])
    if len(lengths) not in (len(tokens), len(tokens) - 1):
        raise BadRow(f"{len(lengths)} distributions for {len(tokens)} tokens")
    there = ~(logs <= FILL)  # NaN is there, to be refused
    if form == "axolotl":
        mask_lengths, mask = nested(row, "target_mask", np.int64)
        if not np.array_equal(mask_lengths, lengths):
            raise BadRow("target_mask differs in shape from target_logprobs")
        there &= mask != 0
    entry = np.repeat(np.arange(len(lengths)), lengths)
    if form == "distillkit" and plain(row.get("labels")) is not None:
        labels = flat(row, "labels", np.int64)
        if len(labels) != len(tokens):
            raise BadRow(f"{len(labels)} labels for {len(tokens)} tokens")
        there &= labels[entry] != IGNORED  # DistillKit's mask: entry and label at one place
    place = entry + shift
    there &= (place >= 1) & (place < len(tokens))  # the first token has no context
    counts = np.bincount(entry[there], minlength=len(lengths))
    some = counts > 0
    return Foreign(
        input_ids=tokens,
        positions=np.flatnonzero(some) + shift,
        ids=_square_ids(counts[some], ids[there]),
        logprobs=_square(counts[some], logs[there], -np.inf),
    )


def _top(row: Row, ids: str, logs: str) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    lengths, id_values = nested(row, ids, np.int64)
    log_lengths, log_values = nested(row, logs, np.float64)
    if not np.array_equal(lengths, log_lengths):
        raise BadRow(f"{ids} and {logs} differ in shape")
    return lengths, id_values, log_values


def _square(lengths: NDArray[np.int64], values: NDArray[Any], fill: Any) -> NDArray[Any]:
    real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    square = np.full(real.shape, fill, values.dtype)
    square[real] = values
    return square


def _square_ids(lengths: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    if (ids < 0).any():  # a file's own padding would pass for ours
        raise BadRow(f"a label's id is negative: {ids.min()}")
    return _square(lengths, ids, PAD_ID)


def checked(row: Foreign, vocab_size: int) -> Foreign:
    """The row with ids in descending order of their logprobs.

    Raises:
        BadRow: it breaks an invariant of docs/format.md that no reordering hints.
    """
    if ((row.input_ids < 0) | (row.input_ids >= vocab_size)).any():
        raise BadRow(f"an input id is outside the tokenizer: {_outside(row.input_ids, vocab_size)}")
    real = row.ids != PAD_ID
    if (row.ids[real] >= vocab_size).any():
        raise BadRow(
            f"a label's id is outside the tokenizer: {_outside(row.ids[real], vocab_size)}"
        )
    for name, values in (("logprob", row.logprobs), ("tail", row.tail), ("token", row.token)):
        if values is not None and np.isnan(values).any():
            raise BadRow(f"a {name} is not a number{_at(row, np.isnan(values))}")
    positive = row.logprobs > ABOVE
    if positive.any():
        raise BadRow(
            f"a logprob is above 0: {row.logprobs.max():.4g}{_at(row, positive)}; "
            "logits and probabilities are no log-probabilities"
        )
    mass = np.exp(row.logprobs).sum(axis=1)
    if (mass > 1 + 10 * ABOVE).any():
        raise BadRow(f"probabilities add up to {mass.max():.4f}{_at(row, mass > 1 + 10 * ABOVE)}")
    if not real.any(axis=1).all():
        raise BadRow(f"a label has no ids{_at(row, ~real.any(axis=1))}")
    ordered = np.sort(row.ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD_ID)
    if twice.any():
        raise BadRow(f"an id stands twice in a label{_at(row, twice)}")
    return _sorted(row)


def _outside(ids: NDArray[np.int64], vocab_size: int) -> str:
    bad = ids[(ids < 0) | (ids >= vocab_size)][0]
    return f"{bad} of {vocab_size}"


def _at(row: Foreign, bad: NDArray[np.bool_]) -> str:
    where = bad.reshape(len(row.positions), -1).any(axis=1)
    return f" at position {row.positions[np.argmax(where)]}"


def _sorted(row: Foreign) -> Foreign:
    order = np.argsort(-row.logprobs, axis=1, kind="stable")
    # A real id of probability 0 comes before padding.
    order = np.take_along_axis(
        order,
        np.argsort(np.take_along_axis(row.ids == PAD_ID, order, 1), axis=1, kind="stable"),
        1,
    )
    return replace(
        row,
        ids=np.take_along_axis(row.ids, order, 1),
        logprobs=np.minimum(np.take_along_axis(row.logprobs, order, 1), 0.0),
    )


def labels_of(row: Foreign, vocab_size: int) -> tuple[Labels, int]:
    """A checked row's labels, and of how many the actual token's logprob is not known.

    The tail is what the file says, or 1 - sum (`IMPORTED_TAIL`). An actual token outside the top-k
    without a logprob of its own gets the largest it can have (`UNKNOWN_TOKEN`).
    """
    ids, logs = row.ids.astype(np.int32), row.logprobs.astype(np.float32)
    tokens = row.tokens_at(0).astype(np.int32)
    hit = ids == tokens[:, None]
    inside = hit.any(axis=1)
    own = np.where(hit, row.logprobs, -np.inf).max(axis=1, initial=-np.inf)
    nothing = np.full(len(tokens), -np.inf, np.float32)
    tail = row.tail
    if tail is None:
        known = nothing if row.token is None else row.token.astype(np.float32)
        tail = derived_tail(ids, logs, tokens, known, vocab_size).astype(np.float64)
    least = np.where(ids == PAD_ID, np.inf, row.logprobs).min(axis=1, initial=np.inf)
    token = np.where(inside, own, np.minimum(least, tail)) if row.token is None else row.token
    optional: dict[str, Any] = {
        name: None if values is None else values.astype(np.float32)
        for name, values in (("entropy", row.entropy), ("log_normalizer", row.log_normalizer))
    }
    labels = Labels(
        topk_ids=ids,
        topk_logprobs=logs,
        tail_logprob=np.minimum(tail, 0.0).astype(np.float32),
        token_logprob=np.minimum(token, 0.0).astype(np.float32),
        **optional,
    )
    return labels, int((~inside).sum()) if row.token is None else 0
