"""Rows of a label set as JSON lines: with all columns, or as prompt and completion."""

from __future__ import annotations

from itertools import pairwise
from typing import TypedDict

import polars as pl
import pyarrow as pa

from labeler.labelsets.common.tokenizer_file import TokenizerFile
from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from schemas.arrow import COLUMN_ORDER
from schemas.errors import SoftshardsError
from schemas.labeled_spans import SpanRecord
from schemas.labelset import LabelSet

NOT_WRITTEN = (
    *("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage"),
    *("sample_ids", "sample_counts", "sample_weights"),
)
"""Columns that follow from others, or have no place in the format."""
JSONL_COLUMNS = tuple(name for name in COLUMN_ORDER if name not in NOT_WRITTEN)


def jsonl_lines(table: pa.Table) -> bytes:
    """Return one JSON object per row, with all columns of docs/format.md that no others imply.

    Numbers are spelled so that they round back to their float16; -inf is null.
    """
    columns = {name: table[name].cast(_widened(table[name].type)) for name in JSONL_COLUMNS}
    return _lines(pl.DataFrame(pl.from_arrow(pa.table(columns))))


def _widened(kind: pa.DataType) -> pa.DataType:
    """Return the type with float32 in place of float16, at any depth of lists."""
    if pa.types.is_list(kind):
        return pa.list_(_widened(kind.value_type))
    return pa.float32() if pa.types.is_float16(kind) else kind


def _lines(frame: pl.DataFrame) -> bytes:
    return frame.write_ndjson().encode()


class _Row(TypedDict):
    id: str
    input_ids: list[int]
    spans: list[SpanRecord]


class Completions:
    """Turns rows into prompt and completion, and counts the rows that do not survive it.

    Attributes:
        unlabeled: rows left out because they have no label.
        changed: rows whose text gives different ids when it is tokenized again, as TRL does.
    """

    def __init__(self, tokenizer: TokenizerFile, *, lossy: bool) -> None:
        self._tokenizer, self._lossy = tokenizer, lossy
        self._added = tokenizer.encode("")  # special tokens that the tokenizer adds in front
        self.unlabeled = 0
        self.changed = 0

    def lines(self, table: pa.Table) -> bytes:
        """Return `prompt` and `completion` of each row, as JSON lines.

        Raises:
            SoftshardsError: a row has labels in several stretches, and `lossy` is not set.
        """
        rows: list[_Row] = table.select(("id", "input_ids", "spans")).to_pylist()
        split = [self._split(row) for row in rows]
        kept = [texts for texts in split if texts is not None]
        schema = {"prompt": pl.String, "completion": pl.String}
        return _lines(pl.DataFrame(kept, schema=schema, orient="row")) if kept else b""

    def _split(self, row: _Row) -> tuple[str, str] | None:
        """Return prompt and completion of a row; None if it has no label."""
        ids, spans = row["input_ids"], row["spans"]
        if not spans:
            self.unlabeled += 1
            return None
        gaps = any(a["stop"] != b["start"] for a, b in pairwise(spans))
        if (gaps or spans[-1]["stop"] != len(ids)) and not self._lossy:
            raise SoftshardsError(
                "its labels are not one stretch up to its end: the completion would have tokens "
                "without labels, too",
                row=row["id"],
                hint="--lossy takes everything from the first label on as the completion",
            )
        start = spans[0]["start"]
        if start == 1 and spans[0]["kind"] == "text":
            start = 0  # a document: only its first token is unlabeled, because it has no context
        skip = len(self._added) if ids[: len(self._added)] == self._added else 0
        prompt = self._tokenizer.decode(ids[min(skip, start) : start])
        text = self._tokenizer.decode(ids[skip:])
        if not text.startswith(prompt):  # the split cuts a character in two
            self.changed += 1
            return prompt, self._tokenizer.decode(ids[start:])
        self.changed += self._tokenizer.encode(text) != ids
        return prompt, text[len(prompt) :]


def open_completions(labels: LabelSet, *, lossy: bool) -> Completions:
    """Return completions with the set's own tokenizer.

    Args:
        labels: the set.
        lossy: also take rows whose labels are several stretches, from the first on.

    Raises:
        SoftshardsError: the set has no tokenizer.json.
    """
    return Completions(load_tokenizer(labels.tokenizer_dir), lossy=lossy)
