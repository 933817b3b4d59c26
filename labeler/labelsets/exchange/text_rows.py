"""Rows of a label set as JSON lines: whole, or as prompt and completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import polars as pl
import pyarrow as pa

from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from schemas import LabelSet
from schemas.arrow import COLUMN_ORDER
from schemas.errors import SoftshardsError

NOT_WRITTEN = (
    *("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage"),
    *("sample_ids", "sample_counts", "sample_weights"),
)
"""Columns that are computed from others, or reserved."""
JSONL_COLUMNS = tuple(name for name in COLUMN_ORDER if name not in NOT_WRITTEN)


def jsonl_lines(table: pa.Table) -> bytes:
    """One JSON object a row, all columns of docs/format.md that others do not follow from.

    Numbers are spelled so that they round back to the float16 they are; -inf is null.
    """
    wide = {pa.float16(): pa.float32()}
    columns = {name: table[name].cast(_with(table[name].type, wide)) for name in JSONL_COLUMNS}
    return _lines(pl.DataFrame(pl.from_arrow(pa.table(columns))))


def _with(kind: pa.DataType, instead: dict[pa.DataType, pa.DataType]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_with(kind.value_type, instead))
    return instead.get(kind, kind)


def _lines(frame: pl.DataFrame) -> bytes:
    return frame.write_ndjson().encode()


@dataclass
class Completions:
    """Makes prompt and completion of rows, and counts what does not come back.

    Attributes:
        lossy: also take rows whose labels are several stretches, from the first on.
        empty: rows left out because they have no label.
        other: rows whose text the tokenizer makes other ids of, as TRL will.
    """

    tokenizer: Any
    lossy: bool
    empty: int = 0
    other: int = 0
    added: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.added = self.tokenizer.encode("").ids

    def lines(self, table: pa.Table) -> bytes:
        """`prompt` and `completion` of each row, as JSON lines.

        Raises:
            SoftshardsError: a row has labels in several stretches.
        """
        columns = ("id", "input_ids", "spans")
        rows = [self._row(row) for row in table.select(columns).to_pylist()]
        kept = [row for row in rows if row is not None]
        schema = {"prompt": pl.String, "completion": pl.String}
        return _lines(pl.DataFrame(kept, schema=schema, orient="row")) if kept else b""

    def _row(self, row: dict[str, Any]) -> tuple[str, str] | None:
        ids, spans = row["input_ids"], row["spans"]
        if not spans:
            self.empty += 1
            return None
        gaps = any(a["stop"] != b["start"] for a, b in pairwise(spans))
        if (gaps or spans[-1]["stop"] != len(ids)) and not self.lossy:
            raise SoftshardsError(
                "its labels are not one stretch up to its end: a completion would have tokens "
                "without labels, too",
                row=row["id"],
                hint="--lossy takes all from the first label on as the completion",
            )
        start = spans[0]["start"]
        if start == 1 and spans[0]["kind"] == "text":
            start = 0  # a document: its first token is unlabeled for want of a context only
        skip = len(self.added) if ids[: len(self.added)] == self.added else 0
        prompt = self._text(ids[min(skip, start) : start])
        whole = self._text(ids[skip:])
        if not whole.startswith(prompt):  # a character is cut in two
            self.other += 1
            return prompt, self._text(ids[start:])
        self.other += self.tokenizer.encode(whole).ids != ids
        return prompt, whole[len(prompt) :]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def completions(labels: LabelSet, *, lossy: bool) -> Completions:
    """Completions with the set's own tokenizer.

    Raises:
        SoftshardsError: it has no tokenizer.json.
    """
    return Completions(load_tokenizer(labels.tokenizer_dir), lossy)
