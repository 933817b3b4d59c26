"""Conditions on single rows: SQL, repetition, refusals. One Polars query computes all masks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
from polars.exceptions import ColumnNotFoundError, PolarsError

from labeler.console import progress
from labeler.labelsets.common.rows import Mask, Rows
from schemas.errors import SoftshardsError, first_line
from schemas.refusals import REFUSALS, is_refusal


@dataclass(frozen=True)
class Condition:
    """A condition on single rows.

    Attributes:
        name: the flag.
        setting: the flag's value.
        keep: SQL, or an expression over the columns of `Rows`, that is true for rows to keep.
    """

    name: str
    setting: str
    keep: str | pl.Expr


def refusals() -> Condition:
    """Return the condition that no answer begins with one of `REFUSALS`."""
    return Condition("refusals", f"{len(REFUSALS)} patterns", ~is_refusal(pl.col("answer")))


def no_match(pattern: str) -> Condition:
    """Return the condition that no answer has a match of the user's pattern.

    Raises:
        SoftshardsError: the pattern is not a regular expression.
    """
    found = pl.col("answer").str.contains(pattern)
    try:
        pl.DataFrame({"answer": [""]}).select(found)
    except PolarsError as error:
        raise SoftshardsError(
            f"--refusal-pattern {pattern!r} is not a regular expression: {first_line(error)}",
            hint="the syntax is Rust's `regex`: no look-around, no back-references",
        ) from error
    return Condition("refusal-pattern", pattern, ~found)


def masks(rows: Rows, conditions: Sequence[Condition]) -> list[Mask]:
    """Return the rows to keep by each condition, bool [rows]; null does not keep a row.

    Raises:
        SoftshardsError: an expression is not a condition on a row, or cannot be computed.
        LabelSetError: a shard is altered.
    """
    if not conditions:
        return []
    for condition in conditions:
        if isinstance(condition.keep, str):
            require_expression(
                rows.schema, condition.keep, f"--{condition.name} {condition.setting!r}"
            )
    ready = {f"c{i}": c.keep for i, c in enumerate(conditions) if isinstance(c.keep, pl.Expr)}
    texts = [
        f"({c.keep}) AS c{i}" if isinstance(c.keep, str) else f"c{i}"
        for i, c in enumerate(conditions)
    ]
    flags = ", ".join(f"--{c.name} {c.setting!r}" for c in conditions)
    with progress("row groups") as bar:
        task = bar.add_task("filtering", total=len(rows.labels.row_groups))
        with polars_errors(flags), rows.lazy(lambda: bar.advance(task)) as frame:
            # n_tokens gives the frame its height, even if all conditions are constants.
            query = frame.with_columns(**ready).sql(
                f"SELECT n_tokens, {', '.join(texts)} FROM self"
            )
            found = query.collect(engine="streaming")
    return [found[f"c{i}"].fill_null(False).to_numpy() for i in range(len(conditions))]


@contextmanager
def polars_errors(flags: str) -> Iterator[None]:
    """Translate errors of a query, such as mismatched types, while the context lasts.

    Args:
        flags: the flags that the query evaluates, for the message.

    Raises:
        SoftshardsError: naming the flags and the fault.
    """
    try:
        yield
    except PolarsError as error:
        raise SoftshardsError(
            f"{flags}: {first_line(error)}",
            hint="compare like with like: numbers with numbers, text in '...' with text",
        ) from error


def require_expression(columns: pl.Schema, text: str, flag: str, *, number: bool = False) -> None:
    """Check that SQL is a condition on each row, or, with `number`, a number per row.

    Args:
        columns: columns of the rows.
        text: the SQL.
        flag: the flag and its value, for the message.
        number: whether it must be a number.

    Raises:
        SoftshardsError: naming the fault, and the nearest columns to an unknown one.
    """
    names = columns.names()
    empty = pl.LazyFrame(schema=columns)  # shows mismatched types without reading a row
    try:
        schema = empty.sql(f"SELECT n_tokens, ({text}) AS result FROM self").collect().schema
    except ColumnNotFoundError as error:
        found = re.search(r'"(.*?)"', str(error))
        unknown = found[1] if found else "?"
        near = difflib.get_close_matches(unknown, names, n=3)
        raise SoftshardsError(
            f"{flag}: there is no column {unknown}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else f"the columns are {', '.join(names)}",
        ) from error
    except PolarsError as error:
        aggregate = "GROUP BY" in str(error)
        what = "it aggregates many rows" if aggregate else first_line(error)
        raise SoftshardsError(
            f"{flag}: {what}",
            hint="give one SQL expression on the columns of a row, as after WHERE",
        ) from error
    kind = schema.get("result", pl.Null())
    good = kind.is_numeric() or kind == pl.Boolean if number else kind == pl.Boolean
    if not good or len(schema) != 2:
        raise SoftshardsError(
            f"{flag} gives {kind}, not {'a number' if number else 'true or false'}",
            hint="compare it with something: `mean_nll < 4`" if not number else "compute a number",
        )
