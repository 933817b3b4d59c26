"""Polars speaks labels: `pl.col("topk_logprobs").labels.probs()`, `frame.labels.explode()`.

Importing `schemas` registers the namespace `labels` on expressions, DataFrames and LazyFrames.
Everything works on the plain columns of docs/format.md, whole columns at a time. Expressions take
a column as a label set has it, one sequence a row (`list[list]`), or after `explode()`, one
position a row (`list`). Build one anew for each: Polars keeps the type that it first had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from schemas import positions, token_text
from schemas.arrow import KEY_COLUMNS
from schemas.codec import Labels, decode
from schemas.divergence import diverge
from schemas.errors import SoftshardsError
from schemas.token_text import Tokenizer

JOINED = ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
FACTS = "_softshards_facts"
"""Attribute of the LazyFrame that `scan` returns."""


@pl.api.register_expr_namespace("labels")
class LabelExpr:
    """`pl.col(...).labels`: what label columns say."""

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def probs(self) -> pl.Expr:
        """Probabilities of `topk_logprobs`, float32, in lists like theirs."""
        return positions.each([self._expr], lambda logs: _probs(logs))

    def coverage(self) -> pl.Expr:
        """Mass inside the top-k at each position, from `topk_logprobs`; float32."""
        return positions.each([self._expr], lambda logs: _probs(logs).list.sum())

    def entropy(self, tail: pl.Expr | str) -> pl.Expr:
        """Entropy in nats of the outcomes (top-k, tail), from `topk_logprobs`; float32.

        A lower bound of the full distribution's, which column `entropy` holds where it is stored.

        Args:
            tail: the column `tail_logprob`.
        """
        return positions.each([self._expr, tail], _entropy)

    def argmax(self) -> pl.Expr:
        """The teacher's likeliest id at each position, from `topk_ids`."""
        return positions.each([self._expr], lambda ids: ids.list.first())

    def agrees(self, token: pl.Expr | str) -> pl.Expr:
        """Whether the likeliest id of `topk_ids` is the actual token at each position.

        Args:
            token: the actual token's id: `token_id` of `explode()`, or
                `pl.col("input_ids").labels.at("spans")`.
        """
        return positions.each([self._expr, token], lambda ids, token: ids.list.first() == token)

    def at(self, spans: pl.Expr | str) -> pl.Expr:
        """Entries of a list over all tokens (`input_ids`) at the labeled positions, in label order.

        Args:
            spans: the column `spans`.
        """
        return self._expr.list.gather(positions.of_spans(spans))

    def decode(self, tokenizer: Tokenizer) -> pl.Expr:
        """Text of each id, alone, in lists like theirs.

        Args:
            tokenizer: `tokenizer.json`, a folder with it, an object with `decode`, or a function
                of a list of ids. A token that is part of a character decodes as U+FFFD.

        Raises:
            SoftshardsError: there is no such file, or it is no tokenizer.
        """
        text = token_text.reader(tokenizer)
        return self._expr.map_batches(lambda ids: token_text.texts(ids, text), is_elementwise=True)


@pl.api.register_lazyframe_namespace("labels")
class LazyLabels:
    """`LazyFrame.labels`: a label set's rows as positions, as text, beside another teacher's."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the label set (`schemas.facts`) on the very frame that `schemas.scan` returned.

        Raises:
            SoftshardsError: it is another frame. Polars keeps nothing of ours through an operation.
        """
        found = getattr(self._frame, FACTS, None)
        if found is None:
            raise SoftshardsError(
                "this frame is not the one that schemas.scan returned",
                hint="ask that one, or call schemas.facts(path)",
            )
        return dict(found)

    def explode(self, *columns: str, keep: Sequence[str] = ()) -> pl.LazyFrame:
        """One labeled position a row.

        Columns: `id`, `chunk`, `sample`; `position`, the place of the token in `input_ids`; `kind`
        of its span; `token_id`, the actual token; then `topk_ids`, `topk_logprobs` (lists),
        `tail_logprob`, `token_logprob`, `entropy` and `log_normalizer` (null where not stored), as
        far as the frame has them.

        Args:
            columns: those of `position` to `log_normalizer` to give; all by default. Polars reads
                all that it explodes, even if a later `select` drops it, so name them here.
            keep: other columns of the row, to be repeated at each of its positions.

        Raises:
            SoftshardsError: there is no such column.
        """
        return positions.explode(self._frame, columns, keep)

    def decode(self, tokenizer: Tokenizer) -> pl.LazyFrame:
        """Adds `token`, the text of `token_id`, and `topk_tokens`, of `topk_ids`: what is there.

        Args:
            tokenizer: as for the expression `decode`.
        """
        names = self._frame.collect_schema().names()
        pairs = {"token": "token_id", "topk_tokens": "topk_ids"}
        return self._frame.with_columns(
            LabelExpr(pl.col(ids)).decode(tokenizer).alias(text)
            for text, ids in pairs.items()
            if ids in names
        )

    def join(self, other: pl.LazyFrame | pl.DataFrame, suffix: str = "_other") -> pl.LazyFrame:
        """Two teachers at the positions that both have labeled, with their KL there.

        Rows of both frames are matched by (`id`, `chunk`, `sample`, `position`), where the token
        is the same one. Adds `kl`, KL(self||other) in nats, and `kl_back`, KL(other||self): over
        the ids that both name and one outcome for all others, so lower bounds of the KL over the
        whole vocabulary; `common_mass`, the mass of those ids by self; `same_first`.

        Args:
            other: rows of the other label set, or its exploded positions.
            suffix: of the other one's columns.
        """
        on = [*KEY_COLUMNS, "position", "token_id"]
        wanted = ("position", "token_id", *JOINED)
        ours, theirs = (_exploded(frame, wanted) for frame in (self._frame, other.lazy()))
        both = ours.join(theirs, on=on, suffix=suffix, maintain_order="left")
        sides = pl.struct(*JOINED, *(f"{name}{suffix}" for name in JOINED))
        kl = sides.map_batches(_divergence, return_dtype=DIVERGENCE, is_elementwise=True)
        return both.with_columns(kl.struct.unnest())


@pl.api.register_dataframe_namespace("labels")
class FrameLabels:
    """`DataFrame.labels`: as `LazyFrame.labels`, at once."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._lazy = LazyLabels(frame.lazy())

    def explode(self, *columns: str, keep: Sequence[str] = ()) -> pl.DataFrame:
        """See `LazyLabels.explode`."""
        return self._lazy.explode(*columns, keep=keep).collect()

    def decode(self, tokenizer: Tokenizer) -> pl.DataFrame:
        """See `LazyLabels.decode`."""
        return self._lazy.decode(tokenizer).collect()

    def join(self, other: pl.LazyFrame | pl.DataFrame, suffix: str = "_other") -> pl.DataFrame:
        """See `LazyLabels.join`."""
        return self._lazy.join(other, suffix).collect()


DIVERGENCE = pl.Struct(
    {"kl": pl.Float64, "kl_back": pl.Float64, "common_mass": pl.Float64, "same_first": pl.Boolean}
)


def _divergence(sides: pl.Series) -> pl.Series:
    columns = sides.struct.unnest()
    ours, theirs = columns.columns[: len(JOINED)], columns.columns[len(JOINED) :]
    found = diverge(_side(columns.select(ours)), _side(columns.select(theirs)))
    return pl.DataFrame(
        {
            "kl": found.a_to_b,
            "kl_back": found.b_to_a,
            "common_mass": found.common_mass,
            "same_first": found.same_first,
        }
    ).to_struct(sides.name)


def _side(columns: pl.DataFrame) -> Labels:
    columns.columns = list(JOINED)
    # All positions as one row: `decode` takes rows.
    return decode(columns.select(pl.all().implode()).to_arrow()).labels


def _exploded(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    if "position" in frame.collect_schema().names():
        return frame.select(*KEY_COLUMNS, *columns)
    return positions.explode(frame, columns)


def _probs(logs: pl.Series) -> pl.Series:
    return logs.cast(pl.List(pl.Float32)).list.eval(pl.element().exp())


def _entropy(logs: pl.Series, tail: pl.Series) -> pl.Series:
    x = pl.element()
    terms = logs.cast(pl.List(pl.Float32)).list.eval((x.exp() * x).fill_nan(0.0))  # 0 log 0 = 0
    last = tail.cast(pl.Float32)
    return -(terms.list.sum() + (last.exp() * last).fill_nan(0.0))
