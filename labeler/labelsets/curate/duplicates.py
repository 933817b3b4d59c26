"""Which of rows with the same, or nearly the same, tokens to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.labelsets.common.ngrams import mixed, ngrams
from labeler.labelsets.common.rows import Mask, labeled_ids, lists
from schemas import SoftshardsError

PERMUTATIONS = 128
"""Hashes of a MinHash signature. The standard error of an estimated similarity s is
sqrt(s (1 - s) / 128): 0.035 at 0.8."""
SEED = 1

On = Literal["sequence", "labeled"]
Choice = tuple[Mask, dict[int, int]]
"""Which rows are kept, and for each row that is not, the kept one that it is a duplicate of."""


def token_columns(on: On) -> tuple[str, ...]:
    """The columns that `tokens` needs."""
    return ("input_ids",) if on == "sequence" else ("input_ids", "spans")


def tokens(frame: pl.DataFrame, on: On) -> list[NDArray[np.int64]]:
    """What is compared of each row: token ids, int64 [length] each."""
    return lists(frame["input_ids"]) if on == "sequence" else labeled_ids(frame)


def digest(ids: NDArray[np.int64]) -> bytes:
    """16 bytes that are the same for the same tokens."""
    return blake2b(ids.tobytes(), digest_size=16).digest()


def choose_exact(digests: list[bytes], rank: NDArray[np.int64], candidates: Mask) -> Choice:
    """Of the candidates with one digest, keep the one of the lowest rank."""
    frame = pl.DataFrame({"digest": digests, "rank": rank, "row": np.arange(len(rank))})
    best = pl.col("row").sort_by("rank").first().over("digest")
    frame = frame.filter(candidates).with_columns(best=best)
    kept = np.zeros(len(candidates), bool)
    kept[frame["best"].to_numpy()] = True
    lost = frame.filter(pl.col("best") != pl.col("row"))
    return kept, dict(zip(lost["row"].to_list(), lost["best"].to_list()))


def require_minhash() -> None:
    """Refuse where the library is not installed, before anything is read.

    Raises:
        SoftshardsError: with what to install.
    """
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise SoftshardsError(
            "--dedup near needs the package datasketch",
            hint="pip install 'softshards[curation]'",
        ) from error


def signature(ids: NDArray[np.int64], n: int) -> NDArray[np.uint32]:
    """MinHash of the set of n-grams of `ids`, uint32 [128]; of all ids where there are fewer.

    Broder, On the resemblance and containment of documents (1997); computed by datasketch.
    """
    grams = np.unique(ngrams(mixed(ids), min(n, max(1, len(ids)))))
    sketch = _sketch().copy()
    sketch.update_batch((grams >> np.uint64(32)).tolist())
    return np.asarray(sketch.hashvalues, np.uint32)


@cache
def _sketch() -> Any:
    """An empty MinHash: drawing its permutations takes longer than using them once."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")


def choose_near(
    signatures: NDArray[np.uint32],
    rank: NDArray[np.int64],
    candidates: Mask,
    similarity: float,
    track: Callable[[Iterable[int]], Iterable[int]],
) -> Choice:
    """Take candidates by rank; keep each that is not too similar to one that was kept before.

    So every removed row has a kept one at least as similar as `similarity`, by the estimate of
    their signatures. Pairs are found by locality-sensitive hashing (datasketch's `MinHashLSH`),
    which may miss some that are close to the threshold.

    Args:
        signatures: uint32 [rows, 128]; rank: int64 [rows], the best first.
        candidates: bool [rows]; similarity: Jaccard, from 0 to 1.
        track: wraps the rows as they are taken, to show progress.
    """
    from datasketch import LeanMinHash, MinHashLSH

    # Bands for a lower threshold find nearly all pairs; each is then judged by its signatures.
    index = MinHashLSH(max(0.1, similarity - 0.1), num_perm=PERMUTATIONS)
    # The index takes some kB a row, so rows that it could not pair with any are not put into it.
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
    """The candidates that have one of the bands in common with another candidate, bool [rows]."""
    sharing = np.zeros(len(candidates), bool)
    for start, stop in bands:
        band = pl.DataFrame(np.ascontiguousarray(signatures[candidates, start:stop]))
        sharing[candidates] |= band.is_duplicated().to_numpy()
    return sharing
