"""Labels against the tokens they claim to be of: which are of another position, told by no model.

A label knows the log-probability of its own token, stored apart from the top-k. Where that token
is in the top-k the two must agree. If they do not, and the top-k agrees with the token a few
positions on, and with the log-probability stored here or there, then it is that position's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.codec import PAD_ID, DecodedLabels, list_offsets

SHIFTS = (-1, 1, -2, 2, -3, 3)
"""Shifts that are tried; a shift s says that the label stored for t is that of t + s."""
ENOUGH = 0.1
"""Share of a row's wrong labels that must speak for a shift: tokens outside the top-k are mute."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each of n labels stands.

    Attributes:
        row: int64 [n], row of the table; position: int64 [n], place of its token in that row.
        tokens: int32 [m], the tokens of all rows, one after the other.
        starts: int64 [rows + 1], where each row begins in `tokens`.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]

    def tokens_at(self, shift: int) -> NDArray[np.int32]:
        """The token `shift` positions after each label's [n]; PAD_ID where the row has none."""
        where = self.position + shift
        inside = (where >= 0) & (where < np.diff(self.starts)[self.row])
        places = np.where(inside, self.starts[self.row] + where, 0)
        return np.where(inside, self.tokens[places], np.int32(PAD_ID))


def label_places(table: pa.Table, decoded: DecodedLabels) -> Places:
    """Where the labels of shard rows stand, from `input_ids` and `spans`."""
    spans = table["spans"].to_pylist()
    parts = [np.arange(s["start"], s["stop"]) for row in spans for s in row]
    tokens, starts = flat_list(table, "input_ids")
    return Places(
        row=np.repeat(np.arange(table.num_rows), np.diff(decoded.offsets)),
        position=np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64),
        tokens=tokens,
        starts=starts,
    )


def flat_list(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list column's values, and the offsets of its rows in them."""
    arrays = table[name].chunks
    array = pa.concat_arrays(arrays) if arrays else table.schema.field(name).type.empty()
    return array.flatten().to_numpy(zero_copy_only=False), list_offsets(array)


def shifts(
    decoded: DecodedLabels,
    places: Places,
    wrong: NDArray[np.bool_],
    slack: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The shift of each label that is of another position [n]; 0 where none can be told.

    Args:
        decoded: the labels; places: where they stand.
        wrong: bool [n], labels that do not fit their own token.
        slack: float64 [n, k], how far a stored logprob may be from the true one.
    """
    found = np.zeros(len(wrong), np.int64)
    some = np.flatnonzero(wrong)
    fits = np.stack([_fits(decoded, places, some, shift, slack[some]) for shift in SHIFTS])
    for row in np.unique(places.row[some]):
        of_row = places.row[some] == row
        votes = fits[:, of_row].sum(axis=1)
        best = int(np.argmax(votes))
        others = np.delete(votes, best).max()
        if votes[best] >= max(1, ENOUGH * of_row.sum()) and votes[best] > 2 * others:
            found[some[of_row]] = SHIFTS[best]
    return found


def _fits(
    decoded: DecodedLabels,
    places: Places,
    some: NDArray[np.int64],
    shift: int,
    slack: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether the top-k of each label in `some` fits the token `shift` positions on."""
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
    return ((labels.topk_ids[some] == places.tokens_at(shift)[some, None]) & near).any(axis=1)
