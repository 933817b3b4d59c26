"""Find labels that belong to a different position, without running a model.

A label stores the log-probability of its actual token apart from the top-k. Where that token is in
the top-k, the two must agree. If they do not, and the top-k agrees with the token a few positions
later or earlier, and with the log-probability stored here or there, the label belongs there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy
from schemas.arrow_lists import list_offsets, one_array
from schemas.codec import PAD_ID, DecodedLabels
from schemas.labeled_spans import positions

SHIFTS = (-1, 1, -2, 2, -3, 3)
"""Shifts to try. Shift s means that the label stored for t belongs to t + s."""
MIN_SHARE = 0.1
"""Share of a row's wrong labels that must fit a shift. Tokens outside the top-k never fit one."""


@dataclass(frozen=True, kw_only=True)
class LabelPlaces:
    """The positions of n labels.

    Attributes:
        row: int64 [n], row of the table.
        position: int64 [n], position of the label's token in that row.
        tokens: int32 [m], the tokens of all rows, concatenated.
        starts: int64 [rows + 1], the start of each row in `tokens`.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]

    def tokens_at(self, shift: int) -> NDArray[np.int32]:
        """Return the tokens [n] `shift` positions after the labels'; PAD_ID outside the row."""
        where = self.position + shift
        inside = (where >= 0) & (where < np.diff(self.starts)[self.row])
        places = np.where(inside, self.starts[self.row] + where, 0)
        return np.where(inside, self.tokens[places], np.int32(PAD_ID))


def label_places(table: pa.Table, decoded: DecodedLabels) -> LabelPlaces:
    """Return the positions of the labels of shard rows, from `input_ids` and `spans`."""
    spans = one_array(table["spans"]).flatten()
    tokens, starts = flat_list(table, "input_ids")
    return LabelPlaces(
        row=np.repeat(np.arange(table.num_rows), np.diff(decoded.offsets)),
        position=positions(as_numpy(spans.field("start")), as_numpy(spans.field("stop"))),
        tokens=tokens,
        starts=starts,
    )


def flat_list(table: pa.Table, name: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return a list column's values, and the offsets of its rows in them."""
    array = one_array(table[name])
    return as_numpy(array.flatten()), list_offsets(array)


def shifts(
    decoded: DecodedLabels,
    places: LabelPlaces,
    wrong: NDArray[np.bool_],
    slack: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the shift of each label [n]; 0 where it has none, or none that can be determined.

    Args:
        decoded: the labels.
        places: their positions.
        wrong: bool [n], labels that do not fit their own token.
        slack: float64 [n, k], largest error of the stored logprobs.
    """
    found = np.zeros(len(wrong), np.int64)
    some = np.flatnonzero(wrong)
    fits = np.stack([_fits(decoded, places, some, shift, slack[some]) for shift in SHIFTS])
    for row in np.unique(places.row[some]):
        of_row = places.row[some] == row
        votes = fits[:, of_row].sum(axis=1)
        best = int(np.argmax(votes))
        others = np.delete(votes, best).max()
        if votes[best] >= max(1, MIN_SHARE * of_row.sum()) and votes[best] > 2 * others:
            found[some[of_row]] = SHIFTS[best]
    return found


def _fits(
    decoded: DecodedLabels,
    places: LabelPlaces,
    some: NDArray[np.int64],
    shift: int,
    slack: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return a mask of labels in `some` whose top-k fits the token `shift` positions later."""
    labels = decoded.labels
    there = np.clip(some + shift, 0, len(places.row) - 1)
    labeled = (places.row[there] == places.row[some]) & (
        places.position[there] == places.position[some] + shift
    )
    here = labels.token_logprob[some]
    other = np.where(labeled, labels.token_logprob[there], here)
    stored = labels.topk_logprobs[some]
    near = np.abs(stored - here[:, None]) <= slack
    near |= np.abs(stored - other[:, None]) <= slack
    fits: NDArray[np.bool_] = labels.topk_ids[some] == places.tokens_at(shift)[some, None]
    return np.asarray((fits & near).any(axis=1))
