"""Rows of a label set as Polars frames: stored columns, and columns computed from them.

Only the requested columns are read, one row group at a time, and each page's checksum is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Lock

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from labeler.labelsets.common.tokenizer_file import TextTokenizer, open_tokenizer
from schemas import LabelSet
from schemas.labeled_spans import labeled_tokens
from schemas.ngrams import repetition
from schemas.shard import identity_schema

Mask = NDArray[np.bool_]
"""The selected rows of a set, bool [rows], in the order of its row groups."""

COMPUTED = {
    "kind": (pl.String, ("spans",)),
    "repetition": (pl.Float64, ("input_ids", "spans")),
    "answer": (pl.String, ("generation", "input_ids", "spans")),
    "text": (pl.String, ("input_ids",)),
}
"""Computed columns: their types, and the stored columns that they are computed from.

`kind`: the kinds of the row's spans, joined by `+`. `repetition`: share of repeated n-grams among
the labeled tokens. `answer`: `generation`, or the text of the labeled tokens where that is null.
Where labels were left out (--keep-positions), these are the tokens from the first label on.
`text`: the text of the whole sequence. Neither text has special tokens."""


@dataclass(frozen=True)
class Rows:
    """The rows of a label set.

    Attributes:
        labels: the set, or a view.
        repetition_ngram: n of the n-grams in the column `repetition`.
    """

    labels: LabelSet
    repetition_ngram: int = 4

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return open_tokenizer(self.labels.tokenizer_dir)

    def token_ids(self, text: str) -> NDArray[np.int64]:
        """Return the ids of a text, int64 [n], without special tokens."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False), np.int64)

    def frames(
        self, columns: Sequence[str], *, only: Mask | None = None
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield (number of the first row, columns) for each row group.

        Args:
            columns: names of stored or computed columns.
            only: bool [rows], rows to yield; row groups without any are not read.
        """
        first = 0
        stored = [name for name in columns if name not in COMPUTED]
        sources = [name for c in columns if c in COMPUTED for name in COMPUTED[c][1]]
        needed = list(dict.fromkeys(stored + sources)) or ["id"]
        for group in self.labels.row_groups:
            chosen = None if only is None else only[first : first + group.rows]
            if chosen is None or chosen.any():
                with self.labels.reader.open(group, "read") as opened:
                    frame = pl.DataFrame(opened.read(needed, chosen))
                yield first, self._with(frame, columns)
            first += group.rows

    @property
    def schema(self) -> pl.Schema:
        """Types of all columns, stored and computed."""
        stored = pl.DataFrame(identity_schema(self.labels.manifest.identity).empty_table())
        return pl.Schema(dict(stored.schema) | {name: kind for name, (kind, _) in COMPUTED.items()})

    @contextmanager
    def lazy(self, tick: Callable[[], None]) -> Iterator[pl.LazyFrame]:
        """Open all columns as a LazyFrame; `tick` is called after each row group.

        Leaving the context waits for a read in progress and stops further ones. When a query fails,
        Polars leaves its threads running, and one in the middle of a read would abort the process
        at its exit.
        """
        reading, ended = Lock(), Event()

        def read(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            del batch_size
            left = self.labels.rows if n_rows is None else n_rows
            frames = self.frames(with_columns or [*self.labels.columns, *COMPUTED])
            while left > 0:
                with reading:
                    found = None if ended.is_set() else next(frames, None)
                if found is None:
                    return
                frame = found[1].head(left)
                left -= frame.height
                yield frame if predicate is None else frame.filter(predicate)
                tick()

        try:
            yield register_io_source(read, schema=self.schema)
        finally:
            ended.set()
            with reading:
                pass

    def _with(self, frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """Return `columns` of a row group, computing the ones that are not stored."""
        added = []
        thinned = self.labels.manifest.identity.keep_positions is not None
        if "kind" in columns:
            kind = pl.element().struct.field("kind").unique(maintain_order=True)
            added.append(frame["spans"].list.eval(kind).list.join("+").rename("kind"))
        if "repetition" in columns:
            n = self.repetition_ngram
            shares = [repetition(ids, n) for ids in labeled_ids(frame, thinned=thinned)]
            added.append(pl.Series("repetition", shares, pl.Float64))
        if "answer" in columns:
            answer = frame["generation"]
            if answer.null_count():
                missing = frame.filter(answer.is_null())
                texts = iter(self._decode(labeled_ids(missing, thinned=thinned)))
                filled = [next(texts) if text is None else text for text in answer]
                answer = pl.Series(filled, dtype=pl.String)
            added.append(answer.rename("answer"))
        if "text" in columns:
            added.append(pl.Series("text", self._decode(lists(frame["input_ids"])), pl.String))
        return frame.with_columns(added).select(columns)

    def _decode(self, rows: list[NDArray[np.int64]]) -> list[str]:
        plain = [row.tolist() for row in rows]
        return self._tokenizer.batch_decode(plain, skip_special_tokens=True)


def lists(series: pl.Series) -> list[NDArray[np.int64]]:
    """Split a column of id lists into arrays, int64 [length] each."""
    stops = np.cumsum(series.list.len().to_numpy())
    flat = series.list.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return np.split(flat.astype(np.int64), stops[:-1]) if len(series) else []


def labeled_ids(frame: pl.DataFrame, *, thinned: bool) -> list[NDArray[np.int64]]:
    """Return the labeled tokens of each row, int64 [n] each, as `labeled_tokens` does."""
    pairs = zip(lists(frame["input_ids"]), frame["spans"].to_list())
    return [labeled_tokens(ids, spans, thinned=thinned) for ids, spans in pairs]
