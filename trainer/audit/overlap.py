"""Measure how much of a generation is a copy: of its row, and of the whole training set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas import LabelSet
from schemas.ngrams import Hashes, mix_bits, ngrams
from trainer.audit.read_training import Ids, read_groups
from trainer.console import ProgressBar


def matched_tokens(generated: Ids, expected: Ids) -> int:
    """Return how many tokens are equal before the first difference."""
    size = min(len(generated), len(expected))
    differ = generated[:size] != expected[:size]
    return int(np.argmax(differ)) if differ.any() else size


def longest_run(generated: Ids, row: Ids) -> int:
    """Return the length of the longest run of tokens that both have, wherever it stands."""
    longest, ends = 0, np.zeros(len(row) + 1, np.int64)
    for token in generated:
        ends[1:] = np.where(row == token, ends[:-1] + 1, 0)
        longest = max(longest, int(ends.max()))
    return longest


def copied_shares(
    labels: LabelSet, prefixes: Sequence[Ids], generations: Sequence[Ids], n: int
) -> list[float]:
    """Return the share of each generation's distinct n-grams that the training set has.

    n-grams of the prefix do not count: the model was given them. The set is read once, one row
    group at a time; what is held are the n-grams of the generations.
    """
    own = [_new_ngrams(prefix, ids, n) for prefix, ids in zip(prefixes, generations)]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *own]))
    found = np.zeros(len(wanted), bool)
    with ProgressBar("compare n-grams", labels.rows) as progress:
        for group in read_groups(labels):
            for row in range(len(group)):
                _mark(wanted, found, ngrams(mix_bits(group.ids_of(row)), n))
            progress.advance(len(group))
    known = wanted[found]
    return [float(np.isin(grams, known).mean()) if len(grams) else 0.0 for grams in own]


def _new_ngrams(prefix: Ids, generated: Ids, n: int) -> Hashes:
    grams = np.unique(ngrams(mix_bits(generated), n))
    return np.setdiff1d(grams, ngrams(mix_bits(prefix), n))


def _mark(wanted: Hashes, found: NDArray[np.bool_], grams: Hashes) -> None:
    if len(wanted):
        at = np.minimum(np.searchsorted(wanted, grams), len(wanted) - 1)
        found[at[wanted[at] == grams]] = True
