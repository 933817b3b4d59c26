"""Invariants of the rows of a label set, checked for a whole row group at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import KEY_COLUMNS, row_schema
from schemas.arrow_alloc import as_numpy
from schemas.codec import (
    DRAW_COLUMNS,
    PAD_ID,
    DecodedLabels,
    Labels,
    bucketed_entropy,
    decode,
)
from schemas.draws import misfits
from schemas.findings import Finding
from schemas.kept_positions import KeepRule, parse_rule
from schemas.labeled_spans import span_problem
from schemas.rounding_error import HALF_STEP, rounding
from schemas.shift_check import LabelPlaces, flat_list, label_places, shifts
from schemas.tempered_bounds import impossible_tails
from schemas.version import COMPACT_1, PLAIN_1

Key = tuple[str, int, int]
SLACK = 1e-3
"""Tolerance in nats, or in mass, for differences of engines on top of rounding in storage."""


def validate_table(
    table: pa.Table,
    *,
    vocab_size: int,
    k: int,
    codec: str = PLAIN_1,
    draws: int | None = None,
    temperatures: Sequence[float] = (),
    asked: int = 0,
    keep: str | None = None,
) -> Iterator[Finding]:
    """Yield one finding per broken invariant of docs/format.md, with the first place it breaks at.

    Args:
        table: rows of a shard with all plain columns, as `LabelSet.read_row_group` returns them.
        vocab_size: number of real token ids.
        k: largest number of top logprobs per position.
        codec: codec that the rows were stored in, for its rounding.
        draws: ids drawn per position; None for a set without sampled labels.
        temperatures: the further temperatures, each with a tail per position.
        asked: most ids per position after the top k, which the input asked for.
        keep: the rule that chose the labels, as an identity spells it.
    """
    rule = None if keep is None else parse_rule(keep)
    weighted = rule is not None and rule.largest_weight is not None
    expected = row_schema(vocab_size, tempered=len(temperatures) > 0, weighted=weighted)
    if not table.schema.remove_metadata().equals(expected):
        yield Finding(kind="schema", what="the schema is not that of format version 1")
        return
    try:
        decoded = decode(table)
    except ValueError as error:
        yield Finding(kind="schema", what=str(error))
        return
    keys: list[Key] = list(zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True))
    rows = list(_row_counts(table, decoded, keys, vocab_size))
    yield from rows
    if any(finding.kind in ("span", "count") for finding in rows):
        return  # the positions of the labels are unknown
    yield from _student_context(table, keys, vocab_size)
    places = label_places(table, decoded)
    broken = partial(_broken, keys=keys, places=places)
    yield from _tempered(decoded.labels, temperatures, broken, k, vocab_size, codec)
    if rule is not None:
        yield from _kept(decoded, rule, keys, places)
    yield from _label_values(table, decoded, keys, places, vocab_size, k, asked, codec)
    yield from _drawn(table, decoded, keys, places, vocab_size, draws, codec)


def row_name(key: Key) -> str:
    """Return a row's key as messages spell it."""
    return f"row {key[0]} (chunk {key[1]}, sample {key[2]})"


def _row_counts(
    table: pa.Table, decoded: DecodedLabels, keys: list[Key], vocab_size: int
) -> Iterator[Finding]:
    counts = np.diff(decoded.offsets)
    tokens, starts = flat_list(table, "input_ids")
    lengths = np.diff(starts)
    outside = np.isin(np.arange(len(keys)), _rows_containing(_outside(tokens, vocab_size), starts))
    for kind, what, wrong in (
        ("count", "n_labels is not the number of labels", counts != as_numpy(table["n_labels"])),
        ("count", "n_tokens is not the number of tokens", lengths != as_numpy(table["n_tokens"])),
        ("token", "an input id is outside the tokenizer", outside),
    ):
        if wrong.any():
            yield Finding(kind=kind, what=what, where=row_name(keys[int(np.argmax(wrong))]))
    spans = table["spans"].to_pylist()
    for key, row, n_tokens, n_labels in zip(keys, spans, lengths, counts, strict=True):
        if problem := span_problem(row, int(n_tokens), int(n_labels)):
            yield Finding(kind="span", what=problem, where=row_name(key))
            return


def _outside(ids: NDArray[np.integer], vocab_size: int) -> NDArray[np.bool_]:
    return (ids < 0) | (ids >= vocab_size)


def _rows_containing(wrong: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows that contain a marked flat position."""
    return np.unique(np.searchsorted(starts, np.flatnonzero(wrong), side="right") - 1)


def _student_context(table: pa.Table, keys: list[Key], vocab_size: int) -> Iterator[Finding]:
    columns = (table[n].to_pylist() for n in ("spans", "student_input_ids", "student_spans"))
    for key, spans, ids, student in zip(keys, *columns, strict=True):
        problem = None
        if (ids is None) != (student is None):
            problem = "student_input_ids and student_spans go together"
        elif ids is not None:
            ours = [s["stop"] - s["start"] for s in student]
            problem = span_problem(student, len(ids), sum(ours))
            if problem is None and ours != [s["stop"] - s["start"] for s in spans]:
                problem = "student_spans differ in length from spans"
            if problem is None and _outside(np.array(ids), vocab_size).any():
                problem = "an id in student_input_ids is outside the tokenizer"
        if problem:
            yield Finding(kind="student", what=problem, where=row_name(key))


def _label_values(
    table: pa.Table,
    decoded: DecodedLabels,
    keys: list[Key],
    places: LabelPlaces,
    vocab_size: int,
    k: int,
    asked: int,
    codec: str,
) -> Iterator[Finding]:
    labels = decoded.labels
    broken: Callable[..., Iterator[Finding]] = partial(_broken, keys=keys, places=places)
    ids, logs = labels.topk_ids, labels.topk_logprobs.astype(np.float64)
    tail, token = labels.tail_logprob.astype(np.float64), labels.token_logprob.astype(np.float64)
    real = ids != PAD_ID
    if ids.shape[1] > k + asked:
        what = f"{ids.shape[1]} ids per position, more than k = {k}"
        yield Finding(kind="label", what=f"{what} and {asked} asked ones" if asked else what)
    columns = [
        *((logs, "topk_logprobs"), (tail, "tail_logprob"), (token, "token_logprob")),
        *((labels.entropy, "entropy"), (labels.log_normalizer, "log_normalizer")),
    ]
    for values, name in columns:
        if values is not None:
            finite = ~np.isnan(values) if "logprob" in name else np.isfinite(values)
            yield from broken(f"{name} is not a number", ~finite.reshape(len(tail), -1).all(axis=1))
    yield from broken("token id outside the tokenizer", ((ids >= vocab_size) & real).any(axis=1))
    ordered = np.sort(ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD_ID)
    yield from broken("an id occurs twice", twice.any(axis=1))
    pairs = np.where(real[:, 1:], logs[:, 1:] > logs[:, :-1], False)
    yield from broken("logprobs are not in descending order", pairs.any(axis=1))
    above = (np.column_stack([logs, tail, token]) > 0).any(axis=1)
    yield from broken("a logprob is above zero", above)
    logs, tail = np.minimum(logs, 0.0), np.minimum(tail, 0.0)  # their exponentials may overflow
    lost = np.isneginf(tail) & (real.sum(axis=1) < vocab_size)
    yield from broken("the tail is zero, and the ids do not cover the vocabulary", lost)
    slack = rounding(logs, codec)
    if codec == COMPACT_1 and slack.size:
        slack[:, 0] *= 3  # the most likely id may have moved up one more step
    p = np.exp(logs)
    mass, bound = p.sum(axis=1) + np.exp(tail), SLACK + 2 * (p * np.expm1(slack)).sum(axis=1)
    yield from broken("top-k and tail do not sum to one", ~np.less_equal(np.abs(mass - 1), bound))
    if labels.entropy is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # of logprobs above zero
            least = bucketed_entropy(labels)
            low = labels.entropy < least - 0.02 - 0.02 * least - 2 * bound
        yield from broken("the entropy is below that of top-k and tail", low)
    yield from _token_values(decoded, places, broken, slack, k)
    yield from _means(table, decoded, keys, bound)


def _tempered(
    labels: Labels,
    temperatures: Sequence[float],
    broken: Callable[..., Iterator[Finding]],
    k: int,
    vocab_size: int,
    codec: str,
) -> Iterator[Finding]:
    """Check the tails at further temperatures."""
    tails = labels.tempered_tails
    found = 0 if tails is None else tails.shape[1]
    if found != len(temperatures) and len(labels):
        expected = len(temperatures)
        what = f"{found} tails at further temperatures, expected {expected}"
        yield Finding(kind="label", what=what)
    elif tails is not None:
        above = np.asarray(~np.all(tails <= 0, axis=1))
        yield from broken("a tail at a temperature is above zero", above)
        if not above.any():
            wrong = impossible_tails(labels, temperatures, k=k, vocab_size=vocab_size, codec=codec)
            for temperature, column in zip(temperatures, wrong.T, strict=True):
                what = f"the tail at T = {temperature:g} does not fit the top-k and its tail"
                yield from broken(what, column)


def _kept(
    decoded: DecodedLabels, rule: KeepRule, keys: list[Key], places: LabelPlaces
) -> Iterator[Finding]:
    """Check labels against the rule that chose them; the first of a row is always kept."""
    labels = decoded.labels
    broken = partial(_broken, keys=keys, places=places)
    if rule.kind == "entropy" and labels.entropy is not None:
        low = labels.entropy < rule.value - HALF_STEP * rule.value
        starts = decoded.offsets[:-1]
        low[starts[starts < len(low)]] = False
        yield from broken(f"the rule {rule} leaves out its label", low)
    if rule.largest_weight is not None and labels.label_weights is not None:
        least, most = 1 - HALF_STEP, rule.largest_weight * (1 + 2 * HALF_STEP)
        right = (labels.label_weights >= least) & (labels.label_weights <= most)
        yield from broken(f"its weight is not from 1 to {rule.largest_weight:g}", ~right)


def _drawn(
    table: pa.Table,
    decoded: DecodedLabels,
    keys: list[Key],
    places: LabelPlaces,
    vocab_size: int,
    draws: int | None,
    codec: str,
) -> Iterator[Finding]:
    """Check sampled labels against the number of draws in the identity, and against the top-k."""
    labels = decoded.labels
    columns = [table[name] for name in DRAW_COLUMNS]
    if draws is None or labels.sample_ids is None:
        if draws is not None or any(c.null_count < table.num_rows for c in columns):
            stated = "no draws" if draws is None else f"{draws} draws per position"
            yield Finding(kind="draws", what=f"the manifest says {stated}, the rows do not")
        return
    broken = partial(_broken, keys=keys, places=places, kind="draws")
    outside = np.asarray((labels.sample_ids >= vocab_size).any(axis=1))
    yield from broken("a drawn id is outside the tokenizer", outside)
    slack = np.expm1(3 * rounding(labels.topk_logprobs, codec) + SLACK)
    yield from broken("the drawn ids do not fit the top-k", misfits(labels, draws, slack))


def _token_values(
    decoded: DecodedLabels,
    places: LabelPlaces,
    broken: Callable[..., Iterator[Finding]],
    slack: NDArray[np.float64],
    k: int,
) -> Iterator[Finding]:
    """Check labels against the actual token; report labels of a different position as shifted."""
    labels = decoded.labels
    ids, logs = labels.topk_ids, labels.topk_logprobs.astype(np.float64)
    tail, token = labels.tail_logprob.astype(np.float64), labels.token_logprob.astype(np.float64)
    real = ids != PAD_ID
    # -inf is stored exactly.
    error = SLACK + HALF_STEP * np.abs(np.where(np.isfinite(token), token, 0.0))
    hit = (ids == places.tokens_at(0)[:, None]) & real
    inside = hit.any(axis=1)
    stored = np.where(hit, logs, 0.0).sum(axis=1)
    allowed = error + np.where(hit, slack, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        differs = inside & (stored != token) & ~(np.abs(stored - token) <= allowed)
    smallest = np.where(real, logs, np.inf)[:, :k].min(axis=1, initial=np.inf)
    last = np.where(real, slack, 0.0)[:, :k].max(axis=1, initial=0.0)
    too_likely = ~inside & (token > smallest + error + last)
    above_tail = ~inside & (token > tail + 2 * error)
    wrong = differs | too_likely | above_tail
    found = shifts(decoded, places, wrong, error[:, None] + slack)
    for shift in np.unique(found[found != 0]).tolist():
        yield from broken(
            f"its label belongs to the token at position {{position}}: labels are shifted by "
            f"{shift:+d}",
            found == shift,
            kind="shift",
            shift=shift,
        )
    wrong &= found == 0
    for what, which in (
        ("token_logprob differs from the actual token's in the top-k", differs),
        ("the actual token is outside the top-k but more likely than it", too_likely),
        ("the actual token is outside the top-k but more likely than the tail", above_tail),
    ):
        yield from broken(what, which & wrong)


def _means(
    table: pa.Table, decoded: DecodedLabels, keys: list[Key], bound: NDArray[np.float64]
) -> Iterator[Finding]:
    """Check the scalars of rows, which filters rely on, against the labels."""
    labels, offsets = decoded.labels, decoded.offsets
    if not len(labels):
        return
    inside = np.exp(np.minimum(labels.topk_logprobs.astype(np.float64), 0.0)).sum(axis=1)
    for name, values, slack in (
        ("mean_nll", -labels.token_logprob.astype(np.float64), np.full(len(labels), SLACK)),
        ("coverage", inside, bound),
    ):
        for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
            stated = table[name][row].as_py()
            if stated is None or start == stop:
                continue
            mean = float(values[start:stop].mean())
            allowed = float(slack[start:stop].mean()) + 2 * HALF_STEP * abs(mean)
            if np.isfinite(mean) and not abs(mean - stated) <= allowed:
                what = f"{name} is {stated:.4f}, computed from the labels it is {mean:.4f}"
                yield Finding(kind="scalar", what=what, where=row_name(keys[row]))
                break


def _broken(
    what: str,
    positions: NDArray[np.bool_],
    *,
    keys: list[Key],
    places: LabelPlaces,
    kind: str = "label",
    shift: int = 0,
) -> Iterator[Finding]:
    """Yield a finding at the first marked label, with the number of marked labels."""
    if not positions.any():
        return
    first = int(np.argmax(positions))
    position = int(places.position[first])
    rows, count = len(np.unique(places.row[positions])), int(positions.sum())
    more = f" ({count} labels in {rows} row{'s' * (rows > 1)})" if count > 1 else ""
    where = f"{row_name(keys[int(places.row[first])])}, position {position}"
    yield Finding(kind=kind, what=what.format(position=position + shift) + more, where=where)
