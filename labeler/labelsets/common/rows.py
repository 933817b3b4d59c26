"""Rows of a label set for the rules: stored columns and some that are computed from them.

Only the columns asked for are read, one row group at a time, each page checked by its checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Lock
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source
from tokenizers import Tokenizer

from labeler.labelsets.common.ngrams import repetition
from schemas import LabelSet
from schemas.arrow import COLUMN_ORDER, row_schema

Mask = NDArray[np.bool_]
"""Which rows of a set, bool [rows], in the order of its row groups."""

COMPUTED = {
    "kind": (pl.String, ("spans",)),
    "repetition": (pl.Float64, ("input_ids", "spans")),
    "answer": (pl.String, ("generation", "input_ids", "spans")),
    "text": (pl.String, ("input_ids",)),
}
"""Columns that are not stored: their types, and the stored columns that they are made from.

`kind`: the kinds of the row's spans, joined by `+`. `repetition`: of the labeled tokens.
`answer`: `generation`, or where that is null the text of the labeled tokens. `text`: of the whole
sequence. Both without special tokens."""


@dataclass(frozen=True)
class Rows:
    """The rows of a label set.

    Attributes:
        labels: the set, or a view.
        repetition_ngram: n of the column `repetition`.
    """

    labels: LabelSet
    repetition_ngram: int = 4

    @cached_property
    def _fast_tokenizer(self) -> Tokenizer | None:
        """The tokenizer without transformers, which takes seconds to import."""
        file = self.labels.tokenizer_dir / "tokenizer.json"
        if not file.is_file():
            return None
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()  # a file may have been saved with both
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _slow_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.labels.tokenizer_dir)

    def token_ids(self, text: str) -> NDArray[np.int64]:
        """Ids of a text, int64 [n], without special tokens."""
        if (fast := self._fast_tokenizer) is not None:
            return np.array(fast.encode(text, add_special_tokens=False).ids, np.int64)
        return np.array(self._slow_tokenizer.encode(text, add_special_tokens=False), np.int64)

    def frames(
        self, columns: Sequence[str], *, only: Mask | None = None
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """Columns of each row group, with the number of its first row.

        Args:
            columns: stored or computed.
            only: bool [rows]; other rows are left out, and row groups with none are not read.
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
        """All columns, stored and computed."""
        stored = pl.DataFrame(row_schema(self.labels.manifest.identity.vocab_size).empty_table())
        return pl.Schema(dict(stored.schema) | {name: kind for name, (kind, _) in COMPUTED.items()})

    @contextmanager
    def lazy(self, tick: Callable[[], None]) -> Iterator[pl.LazyFrame]:
        """All columns as a LazyFrame; `tick` is called after each row group that was read.

        At the end nothing is read any more. When a query fails Polars leaves its threads as they
        are, and one in the middle of a read would abort the process where it ends.
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
            frames = self.frames(with_columns or [*COLUMN_ORDER, *COMPUTED])
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
        """The frame with the computed ones among `columns`, and only those columns."""
        added = []
        if "kind" in columns:
            kind = pl.element().struct.field("kind").unique(maintain_order=True)
            added.append(frame["spans"].list.eval(kind).list.join("+").rename("kind"))
        if "repetition" in columns:
            n = self.repetition_ngram
            shares = [repetition(ids, n) for ids in labeled_ids(frame)]
            added.append(pl.Series("repetition", shares, pl.Float64))
        if "answer" in columns:
            said = frame["generation"]
            if said.null_count():
                missing = frame.filter(said.is_null())
                texts = iter(self._decoded(labeled_ids(missing)))
                said = pl.Series([next(texts) if s is None else s for s in said], dtype=pl.String)
            added.append(said.rename("answer"))
        if "text" in columns:
            added.append(pl.Series("text", self._decoded(lists(frame["input_ids"])), pl.String))
        return frame.with_columns(added).select(columns)

    def _decoded(self, ids: list[NDArray[np.int64]]) -> list[str]:
        plain = [row.tolist() for row in ids]
        if (fast := self._fast_tokenizer) is not None:
            return fast.decode_batch(plain, skip_special_tokens=True)
        return self._slow_tokenizer.batch_decode(plain, skip_special_tokens=True)


def lists(series: pl.Series) -> list[NDArray[np.int64]]:
    """A column of lists of ids as arrays, int64 [length] each."""
    stops = np.cumsum(series.list.len().to_numpy())
    flat = series.list.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return np.split(flat.astype(np.int64), stops[:-1]) if len(series) else []


def labeled_ids(frame: pl.DataFrame) -> list[NDArray[np.int64]]:
    """The labeled tokens of each row, in label order, int64 [n_labels] each."""
    taken = []
    for ids, spans in zip(lists(frame["input_ids"]), frame["spans"].to_list()):
        parts = [ids[span["start"] : span["stop"]] for span in spans]
        taken.append(np.concatenate(parts) if parts else ids[:0])
    return taken
