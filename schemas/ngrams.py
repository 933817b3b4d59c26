"""n-grams as 64-bit hashes, in numpy."""

from __future__ import annotations

import re
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_WORD = re.compile(r"\w+")


def mix_bits(numbers: NDArray[np.integer]) -> Hashes:
    """Spread integers over 64 bits, one to one (the finalizer of SplitMix64)."""
    x = numbers.astype(np.uint64) + _ODD
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def ngrams(units: Hashes, n: int) -> Hashes:
    """Hash each run of n units: uint64 [len - n + 1], empty if there are fewer than n units."""
    if len(units) < n:
        return units[:0]
    count = len(units) - n + 1
    total = np.zeros(count, np.uint64)
    for i in range(n):
        total = mix_bits(total ^ units[i : i + count])
    return total


def words(text: str) -> Hashes:
    """Hash each word of a text, in order, in lower case and without punctuation."""
    found = _WORD.findall(text.lower())
    digests = b"".join(blake2b(word.encode(), digest_size=8).digest() for word in found)
    return np.frombuffer(digests, np.uint64)


def repetition(ids: NDArray[np.integer], n: int) -> float:
    """Return the share of repeated n-grams in `ids`: 1 - distinct / all, 0 if there are none.

    This is seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training
    (arXiv:1908.04319), who use n = 4.
    """
    grams = ngrams(mix_bits(ids), n)
    return 1 - len(np.unique(grams)) / len(grams) if len(grams) else 0.0
