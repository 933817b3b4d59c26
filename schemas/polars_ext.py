"""Namespace `labels` in Polars: `pl.col("topk_logprobs").labels.probs()`, `frame.labels.explode()`.

Importing this module, or using `schemas.scan`, registers the namespace on expressions, DataFrames
and LazyFrames. It works on the plain columns of docs/format.md, whole columns at a time.
Expressions take a column with one sequence per row (`list[list]`), as in a label set, or with one
position per row (`list`), as after `explode()`. Build a new expression for each: Polars keeps the
type that an expression had first.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from schemas.arrow import KEY_COLUMNS
from schemas.codec import Labels, decode
from schemas.divergence import diverge
from schemas.errors import SoftshardsError
from schemas.polars_positions import explode, map_positions, span_positions
from schemas.set_facts import SetFacts
from schemas.token_text import Tokenizer, decode_ids, open_decoder

JOINED = ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
FACTS = "_softshards_facts"
"""Attribute of the LazyFrame that `scan` returns."""


@pl.api.register_expr_namespace("labels")
class LabelExpr:
    """`pl.col(...).labels`: functions of label columns."""

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def probs(self) -> pl.Expr:
        """Return the probabilities of `topk_logprobs`, float32, in the same lists."""
        return map_positions([self._expr], lambda logs: _probs(logs))

    def coverage(self) -> pl.Expr:
        """Return the mass inside the top-k at each position, from `topk_logprobs`; float32."""
        return map_positions([self._expr], lambda logs: _probs(logs).list.sum())

    def entropy(self, tail: pl.Expr | str) -> pl.Expr:
        """Return the entropy of the outcomes (top-k, tail), from `topk_logprobs`; nats, float32.

        It is a lower bound of the full distribution's entropy, which column `entropy` may hold.

        Args:
            tail: the column `tail_logprob`.
        """
        return map_positions([self._expr, tail], _entropy)

    def argmax(self) -> pl.Expr:
        """Return the teacher's most likely id at each position, from `topk_ids`."""
        return map_positions([self._expr], lambda ids: ids.list.first())

    def agrees(self, token: pl.Expr | str) -> pl.Expr:
        """Return true where the most likely id of `topk_ids` is the actual token.

        Args:
            token: the actual token's id: `token_id` of `explode()`, or
                `pl.col("input_ids").labels.at("spans")`.
        """
        return map_positions([self._expr, token], lambda ids, token: ids.list.first() == token)

    def at(self, spans: pl.Expr | str) -> pl.Expr:
        """Return a list over tokens (`input_ids`) at the labeled positions, in label order.

        Args:
            spans: the column `spans`.
        """
        return self._expr.list.gather(span_positions(spans))

    def decode(self, tokenizer: Tokenizer) -> pl.Expr:
        """Return the text of each id by itself, in the same lists.

        Args:
            tokenizer: a `tokenizer.json` or its folder, an object with `decode`, or a function
                of a list of ids. A token that is part of a character decodes as U+FFFD.

        Raises:
            SoftshardsError: the file is missing, or this is not a tokenizer.
        """
        decode = open_decoder(tokenizer)
        return self._expr.map_batches(lambda ids: decode_ids(ids, decode), is_elementwise=True)


@pl.api.register_lazyframe_namespace("labels")
class LazyLabels:
    """`LazyFrame.labels`: rows as positions, as text, and joined with another teacher's rows."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    @property
    def facts(self) -> SetFacts:
        """Facts about the label set (`schemas.facts`), on the frame that `schemas.scan` returned.

        Raises:
            SoftshardsError: this is a different frame. Polars operations drop the facts.
        """
        found: SetFacts | None = getattr(self._frame, FACTS, None)
        if found is None:
            raise SoftshardsError(
                "this frame is not the one that schemas.scan returned",
                hint="use that frame, or call schemas.facts(path)",
            )
        return found.copy()

    def explode(self, *columns: str, keep: Sequence[str] = ()) -> pl.LazyFrame:
        """Explode rows to one labeled position per row.

        Columns: `id`, `chunk`, `sample`; `position`, the index of the token in `input_ids`; `kind`
        of its span; `token_id`, the actual token; then `topk_ids`, `topk_logprobs` (lists),
        `tail_logprob`, `token_logprob`, `entropy` and `log_normalizer` (null where not stored), as
        far as the frame has them.

        Args:
            columns: columns from `position` to `log_normalizer` to return; all by default. Polars
                reads everything that it explodes, even if a later `select` drops it.
            keep: other columns of the row, repeated at each of its positions.

        Raises:
            SoftshardsError: a column does not exist.
        """
        return explode(self._frame, columns, keep)

    def decode(self, tokenizer: Tokenizer) -> pl.LazyFrame:
        """Add `token`, the text of `token_id`, and `topk_tokens`, the text of `topk_ids`.

        A column is added only where its ids exist.

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
        """Join two teachers at the positions that both have labeled, and compute their KL.

        Positions are matched by `id`, `chunk`, `sample` and `position`, where the token is the
        same. Adds `kl`, KL(self||other) in nats, and `kl_back`, KL(other||self), over the ids that
        both store and one outcome for all others: lower bounds of the KL over the whole vocabulary.
        Also adds `common_mass`, the mass of the common ids according to self, and `same_first`.

        Args:
            other: rows of the other label set, or its exploded positions.
            suffix: suffix of the other set's columns.
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
    """`DataFrame.labels`: the methods of `LazyFrame.labels`, evaluated at once."""

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
    # `decode` takes rows: pass all positions as one row.
    return decode(columns.select(pl.all().implode()).to_arrow()).labels


def _exploded(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    if "position" in frame.collect_schema().names():
        return frame.select(*KEY_COLUMNS, *columns)
    return explode(frame, columns)


def _probs(logs: pl.Series) -> pl.Series:
    return logs.cast(pl.List(pl.Float32)).list.eval(pl.element().exp())


def _entropy(logs: pl.Series, tail: pl.Series) -> pl.Series:
    x = pl.element()
    terms = logs.cast(pl.List(pl.Float32)).list.eval((x.exp() * x).fill_nan(0.0))  # 0 log 0 = 0
    last = tail.cast(pl.Float32)
    return -(terms.list.sum() + (last.exp() * last).fill_nan(0.0))
