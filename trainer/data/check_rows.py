"""Check what the losses rely on, in rows whose bytes are as the set's hashes say.

Hashes show that nothing changed. They do not show that what was written makes sense: a stranger's
set can be sealed around labels with a probability above 1, or one list too short. `labeler verify`
checks far more; this is what would train a student wrongly without a word.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas import Labels
from schemas.arrow import SPAN_KINDS
from schemas.arrow_lists import list_offsets, one_array
from schemas.codec import PAD_ID
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.rounding_error import HALF_STEP
from schemas.tempered_bounds import impossible_tails
from schemas.version import COMPACT_1

RowProblem = tuple[int, str]
"""The number of a row, and what is wrong with it."""


def layout_problem(table: pa.Table, vocab_size: int) -> RowProblem | None:
    """Return the first row whose tokens, spans and numbers of labels do not fit each other.

    Args:
        table: rows of a shard, with the columns of `trainer.data.window.ROW_COLUMNS`.
        vocab_size: number of the teacher's real ids.
    """
    rows = table.num_rows
    counts = table["n_labels"].to_numpy()
    labels = np.diff(list_offsets(one_array(table["tail_logprob"])))
    if (wrong := counts != labels).any():
        row = int(np.argmax(wrong))
        return row, f"n_labels is {counts[row]}, and there are {labels[row]} labels"
    for ids, spans in (("input_ids", "spans"), ("student_input_ids", "student_spans")):
        tokens, where = one_array(table[ids]), one_array(table[spans])
        known = tokens.is_valid().to_numpy(zero_copy_only=False)
        if (wrong := known != where.is_valid().to_numpy(zero_copy_only=False)).any():
            return int(np.argmax(wrong)), f"{ids} and {spans} go together"
        flat = tokens.flatten().to_numpy()
        lengths = np.diff(list_offsets(tokens))
        if flat.size and not 0 <= flat.min() <= flat.max() < vocab_size:
            outside = np.flatnonzero((flat < 0) | (flat >= vocab_size))[0]
            row = int(np.searchsorted(np.cumsum(lengths), outside, side="right"))
            return row, f"an id in {ids} is outside the vocabulary of {vocab_size}"
        starts, stops, kinds = (where.flatten().field(n) for n in ("start", "stop", "kind"))
        start, stop = (column.to_numpy().astype(np.int64) for column in (starts, stops))
        of_row = np.repeat(np.arange(rows), np.diff(list_offsets(where)))
        least = np.ones_like(start)  # the first token has no label, and spans do not overlap
        least[1:] = np.where(of_row[1:] == of_row[:-1], stop[:-1], 1)
        wrong = (start < least) | (stop <= start) | (stop > lengths[of_row])
        if wrong.any():
            at = int(np.argmax(wrong))
            return int(of_row[at]), f"span [{start[at]}, {stop[at]}) in {spans} is misplaced"
        covered = np.zeros(rows, np.int64)
        np.add.at(covered, of_row, stop - start)
        if (wrong := known & (covered != counts)).any():
            row = int(np.argmax(wrong))
            return (
                row,
                f"{spans} cover {covered[row]} positions, and there are {counts[row]} labels",
            )
        known_kind = pc.is_in(kinds, pa.array(SPAN_KINDS)).to_numpy(zero_copy_only=False)
        if not known_kind.all():
            at = int(np.argmin(known_kind))
            return int(of_row[at]), f"unknown span kind {kinds[at].as_py()!r}"
    return None


def value_problem(
    labels: Labels,
    offsets: NDArray[np.int64],
    vocab_size: int,
    temperature: float | None = None,
    largest_weight: float = np.inf,
) -> RowProblem | None:
    """Return the first row with a label that is not a distribution over the vocabulary.

    Args:
        labels: decoded labels.
        offsets: row i has labels[offsets[i]:offsets[i + 1]].
        vocab_size: number of the teacher's real ids.
        temperature: of the tails at a further temperature, if they were read.
        largest_weight: the largest weight that a sampled label may have.
    """
    logs = {
        "topk_logprobs": labels.topk_logprobs,
        "tail_logprob": labels.tail_logprob,
        "token_logprob": labels.token_logprob,
    }
    if labels.tempered_tails is not None:
        logs["tempered_tails"] = labels.tempered_tails
    for name, values in logs.items():
        if values.size and not values.max() <= 0:  # true of NaN, too
            return _row(~(values <= 0), offsets), f"{name} is above 0 or NaN"
    weights = labels.label_weights
    if weights is not None:
        most = largest_weight * (1 + 2 * HALF_STEP)
        if not np.all(right := (weights >= 0) & (weights < np.inf) & (weights <= most)):
            what = f"{LABEL_WEIGHTS} has a weight below 0, above {largest_weight:g} or no number"
            return _row(~right, offsets), what
    for name, ids, empty in (
        ("topk_ids", labels.topk_ids, labels.topk_logprobs == -np.inf),
        ("sample_ids", labels.sample_ids, labels.sample_counts == 0),
    ):
        if ids is None or not ids.size:
            continue
        if ids.max() >= vocab_size or ids.min() < PAD_ID:
            wrong = (ids >= vocab_size) | (ids < PAD_ID)
            return _row(wrong, offsets), f"{name} has an id outside the vocabulary of {vocab_size}"
        if ids.min() == PAD_ID and (wrong := (ids == PAD_ID) & ~empty).any():
            return _row(wrong, offsets), f"{name} has the id {PAD_ID}"
    if labels.tempered_tails is not None and temperature is not None:
        # The ids of the top k are not told from asked ones here, nor the codec: the widest bounds.
        wrong = impossible_tails(labels, [temperature], k=1, vocab_size=vocab_size, codec=COMPACT_1)
        if wrong.any():
            return _row(wrong, offsets), f"the tail at T = {temperature:g} does not fit the top-k"
    states = labels.states
    if states is not None and states.dtype == np.float16 and not np.isfinite(states).all():
        return _row(~np.isfinite(states), offsets), "a hidden state is not finite"
    return None


def _row(wrong: NDArray[np.bool_], offsets: NDArray[np.int64]) -> int:
    """Return the row of the first label that is marked in [n] or [n, k]."""
    at = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
    return int(np.searchsorted(offsets, at, side="right")) - 1
