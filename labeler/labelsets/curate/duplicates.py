"""Keep one of several rows with the same, or nearly the same, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.labelsets.common.rows import Mask, labeled_ids, lists
from schemas.errors import SoftshardsError
from schemas.ngrams import mix_bits, ngrams

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
"""Hashes of a MinHash signature. The standard error of an estimated similarity s is
sqrt(s (1 - s) / 128): 0.035 at 0.8."""
SEED = 1

On = Literal["sequence", "labeled"]
Choice = tuple[Mask, dict[int, int]]
"""The kept rows, and for each removed one the kept row that it duplicates."""


def token_columns(on: On) -> tuple[str, ...]:
    """Return the columns that `tokens` needs."""
    return ("input_ids",) if on == "sequence" else ("input_ids", "spans")


def tokens(frame: pl.DataFrame, on: On, *, thinned: bool) -> list[NDArray[np.int64]]:
    """Return the tokens to compare of each row: ids, int64 [length] each.

    `thinned`: as in `labeled_tokens`.
    """
    return lists(frame["input_ids"]) if on == "sequence" else labeled_ids(frame, thinned=thinned)


def digest(ids: NDArray[np.int64]) -> bytes:
    """Return 16 bytes that identify a row's tokens."""
    return blake2b(ids.tobytes(), digest_size=16).digest()


def choose_exact(digests: list[bytes], rank: NDArray[np.int64], candidates: Mask) -> Choice:
    """Keep the candidate of the lowest rank among those with the same digest."""
    frame = pl.DataFrame({"digest": digests, "rank": rank, "row": np.arange(len(rank))})
    best = pl.col("row").sort_by("rank").first().over("digest")
    frame = frame.filter(candidates).with_columns(best=best)
    kept = np.zeros(len(candidates), bool)
    kept[frame["best"].to_numpy()] = True
    lost = frame.filter(pl.col("best") != pl.col("row"))
    return kept, dict(zip(lost["row"].to_list(), lost["best"].to_list()))


def require_minhash() -> None:
    """Check that datasketch is installed, before anything is read.

    Raises:
        SoftshardsError: the package is missing.
    """
    if find_spec("datasketch") is None:
        raise SoftshardsError(
            "--dedup near needs the package datasketch",
            hint="pip install 'softshards[curation]'",
        )


def signature(ids: NDArray[np.int64], n: int) -> NDArray[np.uint32]:
    """Return the MinHash of the n-grams of `ids`, uint32 [128]; fewer than n ids are one gram.

    Broder, On the resemblance and containment of documents (1997); computed by datasketch.
    """
    grams = np.unique(ngrams(mix_bits(ids), min(n, max(1, len(ids)))))
    sketch = _sketch().copy()
    sketch.update_batch((grams >> np.uint64(32)).tolist())
    return np.asarray(sketch.hashvalues, np.uint32)


@cache
def _sketch() -> MinHash:
    """Return an empty MinHash, to copy: drawing its permutations takes longer than using them."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")


def choose_near(
    signatures: NDArray[np.uint32],
    rank: NDArray[np.int64],
    candidates: Mask,
    similarity: float,
    track: Callable[[Iterable[int]], Iterable[int]],
) -> Choice:
    """Take candidates by rank; keep each that is not too similar to one kept before.

    So every removed row has a kept one at least as similar as `similarity`, by the estimate of
    their signatures. Locality-sensitive hashing (datasketch's `MinHashLSH`) finds the pairs, and
    may miss some that are close to the threshold.

    Args:
        signatures: uint32 [rows, 128].
        rank: int64 [rows], 0 is the best.
        candidates: bool [rows].
        similarity: Jaccard similarity, from 0 to 1.
        track: wraps the rows as they are taken, to show progress.
    """
    from datasketch import LeanMinHash, MinHashLSH

    # Bands for a lower threshold find nearly all pairs; the signatures then decide.
    index = MinHashLSH(max(0.1, similarity - 0.1), num_perm=PERMUTATIONS)
    # The index takes some kB per row: rows that share no band with another stay out of it.
    paired = _share_a_band(signatures, candidates, index.hashranges)
    kept = candidates & ~paired
    twins: dict[int, int] = {}
    order = np.flatnonzero(paired)
    order = order[np.argsort(rank[order], kind="stable")]
    for row in track(order.tolist()):
        sketch = LeanMinHash(seed=SEED, hashvalues=signatures[row], scheme="affine32")
        found = np.array(index.query(sketch), np.int64)
        shares = (signatures[found] == signatures[row]).mean(axis=1)
        found, shares = found[shares >= similarity], shares[shares >= similarity]
        if len(found):
            twins[row] = int(found[np.lexsort((rank[found], -shares))[0]])
        else:
            kept[row] = True
            index.insert(row, sketch, check_duplication=False)
    return kept, twins


def _share_a_band(
    signatures: NDArray[np.uint32], candidates: Mask, bands: list[tuple[int, int]]
) -> Mask:
    """Return the candidates that share a band with another candidate, bool [rows]."""
    sharing = np.zeros(len(candidates), bool)
    for start, stop in bands:
        band = pl.DataFrame(np.ascontiguousarray(signatures[candidates, start:stop]))
        sharing[candidates] |= band.is_duplicated().to_numpy()
    return sharing
