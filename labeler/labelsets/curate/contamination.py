"""Find rows that share n-grams with held-out text.

After appendix C of Brown et al., Language Models are Few-Shot Learners (arXiv:2005.14165): 13-grams
of words, without case and punctuation. They cut a document where it collides; here the row is
removed, and n-grams that many ids share are ignored as templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.console import counting, err
from labeler.labeling.inputs.find_inputs import InputSet, find_inputs
from labeler.labeling.inputs.read_records import Record, read_records
from labeler.labelsets.common.rows import Rows, lists
from schemas.errors import SoftshardsError
from schemas.ngrams import Hashes, mix_bits, ngrams, words

Units = Callable[[str], Hashes]


@dataclass(frozen=True)
class HeldOut:
    """The n-grams of held-out texts.

    Attributes:
        grams: uint64 [m], sorted, without repeats.
        first: int64 [m], number of the first text that has each gram.
        names: names of the texts.
    """

    grams: Hashes
    first: NDArray[np.int64]
    names: list[str]


@dataclass
class Overlaps:
    """The n-grams that the rows of a set share with held-out text.

    Attributes:
        held_out: the held-out text.
        pairs: for each row with shared grams: (row, gram, hash of the row's id) of each gram.
        totals: number of n-grams of each row.
    """

    held_out: HeldOut
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], Hashes]] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def add(self, name: str, grams: Hashes) -> None:
        """Add the next row: its id and its n-grams."""
        known = self.held_out.grams
        at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        hits = at[known[at] == grams]
        row = np.full(len(hits), len(self.totals))
        record = np.broadcast_to(_hash_id(name), hits.shape)
        if len(hits):
            self.pairs.append((row, hits, record))
        self.totals.append(len(grams))

    def shares(self, common: int) -> tuple[NDArray[np.float64], dict[int, int]]:
        """Return the share of each row's n-grams that is held out, without templates.

        Args:
            common: n-grams that more ids than this have are templates.

        Returns:
            The shares, float64 [rows], and for each row above 0 the number of the held-out text
            that has its first shared gram.
        """
        shares = np.zeros(len(self.totals))
        if not self.pairs:
            return shares, {}
        row, gram, record = (np.concatenate(part) for part in zip(*self.pairs))
        pairs = pl.DataFrame({"gram": gram, "record": record})
        ids = pairs.select(pl.col("record").n_unique().over("gram")).to_series().to_numpy()
        row, gram = row[ids <= common], gram[ids <= common]
        counts = np.bincount(row, minlength=len(shares))
        shares = counts / np.maximum(1, self.totals)
        rows, at = np.unique(row, return_index=True)
        return shares, dict(zip(rows.tolist(), self.held_out.first[gram[at]].tolist()))


def _hash_id(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def text_units(rows: Rows, kind: str) -> Units:
    """Return the function that cuts a text into hashed words, or tokens of the set's tokenizer."""
    return words if kind == "words" else lambda text: mix_bits(rows.token_ids(text))


def row_units(frame: pl.DataFrame, kind: str) -> Iterator[Hashes]:
    """Return the hashed units of each row, from its column `text` or `input_ids`."""
    if kind == "words":
        return (words(text) for text in frame["text"])
    return (mix_bits(ids) for ids in lists(frame["input_ids"]))


def read_held_out(inputs: Sequence[str], rows: Rows, n: int, kind: str) -> HeldOut:
    """Read held-out label sets and files.

    In a label set the whole sequences count; in other records each string counts by itself.

    Raises:
        SoftshardsError: no text has n units, or tokens are to be compared and a label set has a
            different tokenizer.
    """
    units = text_units(rows, kind)
    grams, first = [], []
    names: list[str] = []
    short = 0
    with counting("records", "reading held-out text") as counted:
        for name, texts in counted(_texts(inputs, rows, kind)):
            found = [ngrams(units(part) if isinstance(part, str) else part, n) for part in texts]
            distinct = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
            if len(distinct):
                grams.append(distinct)
                first.append(np.full(len(distinct), len(names)))
                names.append(name)
            else:
                short += 1
    if short:
        err.print(f"{short} held-out records are shorter than {n} {kind} and match nothing")
    if not grams:
        raise SoftshardsError(
            f"no held-out record has {n} consecutive {kind}",
            path=inputs[0],
            hint="lower --ngram, or use --ngram-of tokens for scripts without spaces",
        )
    known, at = np.unique(np.concatenate(grams), return_index=True)
    return HeldOut(known, np.concatenate(first)[at], names)


def _texts(
    inputs: Sequence[str], rows: Rows, kind: str
) -> Iterator[tuple[str, list[str] | list[Hashes]]]:
    for source in find_inputs(inputs):
        if isinstance(source, InputSet):
            held_out = Rows(source.labels)
            ours, theirs = (r.labels.manifest.identity.tokenizer for r in (rows, held_out))
            if kind == "tokens" and ours != theirs:
                raise SoftshardsError(
                    "the held-out label set has a different tokenizer",
                    path=source.labels.place,
                    hint="compare words: --ngram-of words",
                )
            column = "text" if kind == "words" else "input_ids"
            for _, frame in held_out.frames(["id", column]):
                for name, units in zip(frame["id"], row_units(frame, kind)):
                    yield f"{source.name}: {name}", [units]
            continue
        for record in read_records(source):
            if isinstance(record, Record):
                yield record.id, list(_strings(record.columns))


def _strings(value: object) -> Iterator[str]:
    """Yield every string in a record, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
