"""Rules on single rows: SQL conditions, repetition, refusals. One Polars query gives all masks."""

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
from schemas import SoftshardsError
from schemas.errors import first_line

BEGINNING = 300
"""Characters of an answer in which a refusal is looked for."""

_SORRY = r"(i['’]m|i am) (so |very |really |terribly )?(sorry|afraid)|i apologi[sz]e|sorry"
_CANNOT = (
    r"(can['’]?t|cannot|can not|won['’]t|will not|am (not able|unable)|['’]m (not able|unable))"
)
_HELP = r"(help|assist|answer|provide|comply|fulfil|do that|create|generate|write|discuss|support)"
REFUSALS = (
    rf"^\W*({_SORRY})\b.{{0,80}}?\b(i|we) ?{_CANNOT}",
    rf"^\W*(unfortunately,? )?(i|we) ?{_CANNOT}( to)?( \w+)?( \w+)? {_HELP}",
    rf"\bas an? (ai|artificial intelligence|(large )?language model)\b.{{0,80}}?\bi ?{_CANNOT}",
    r"^\W*i (must|have to) (decline|refuse)\b",
    r"\bagainst my (programming|guidelines|principles|ethical guidelines)\b",
)
"""Regular expressions (of Rust's `regex`), case ignored, `.` matching line ends, searched in the
beginning of an answer. English only."""


@dataclass(frozen=True)
class Condition:
    """A rule on single rows.

    Attributes:
        name, setting: of the flag.
        keep: SQL, or an expression over the columns of `Rows`, that is true for rows to keep.
    """

    name: str
    setting: str
    keep: str | pl.Expr


def refusals() -> Condition:
    """No answer that begins with one of `REFUSALS`."""
    start = pl.col("answer").str.head(BEGINNING)
    found = pl.any_horizontal(start.str.contains(f"(?is){pattern}") for pattern in REFUSALS)
    return Condition("refusals", f"{len(REFUSALS)} patterns", ~found)


def no_match(pattern: str) -> Condition:
    """No answer with a match of a pattern of the user's.

    Raises:
        SoftshardsError: it is no regular expression.
    """
    found = pl.col("answer").str.contains(pattern)
    try:
        pl.DataFrame({"answer": [""]}).select(found)
    except PolarsError as error:
        raise SoftshardsError(
            f"--refusal-pattern {pattern!r} is no regular expression: {first_line(error)}",
            hint="the syntax is that of Rust's `regex`: no look-around, no back-references",
        ) from error
    return Condition("refusal-pattern", pattern, ~found)


def masks(rows: Rows, conditions: Sequence[Condition]) -> list[Mask]:
    """For each condition, which rows to keep, bool [rows]; where it is null the row is not kept.

    Raises:
        SoftshardsError: a condition is no condition on a row, or cannot be computed.
        LabelSetError: a shard is altered.
    """
    if not conditions:
        return []
    for condition in conditions:
        if isinstance(condition.keep, str):
            check(rows.schema, condition.keep, f"--{condition.name} {condition.setting!r}")
    ready = {f"c{i}": c.keep for i, c in enumerate(conditions) if isinstance(c.keep, pl.Expr)}
    texts = [
        f"({c.keep}) AS c{i}" if isinstance(c.keep, str) else f"c{i}"
        for i, c in enumerate(conditions)
    ]
    asked = ", ".join(f"--{c.name} {c.setting!r}" for c in conditions)
    with progress("row groups") as bar:
        task = bar.add_task("asking", total=len(rows.labels.row_groups))
        with refused(asked), rows.lazy(lambda: bar.advance(task)) as frame:
            # n_tokens is never null: the frame has a row for each row, whatever is asked.
            query = frame.with_columns(**ready).sql(
                f"SELECT n_tokens, {', '.join(texts)} FROM self"
            )
            found = query.collect(engine="streaming")
    return [found[f"c{i}"].fill_null(False).to_numpy() for i in range(len(conditions))]


@contextmanager
def refused(asked: str) -> Iterator[None]:
    """Within, what was asked is computed, which types that do not fit can still make fail.

    Raises:
        SoftshardsError: naming what was asked, and the fault.
    """
    try:
        yield
    except PolarsError as error:
        raise SoftshardsError(
            f"{asked}: {first_line(error)}",
            hint="compare like with like: numbers with numbers, text in '...' with text",
        ) from error


def check(columns: pl.Schema, text: str, asked: str, *, number: bool = False) -> None:
    """Refuse SQL that is no condition on each row, or, with `number`, no number of it.

    Args:
        columns: of the rows.
        text: the SQL; asked: the flag that it was given with.
        number: whether it is to be a number.

    Raises:
        SoftshardsError: naming the column that is not there with the nearest ones, or the fault.
    """
    names = columns.names()
    nothing = pl.LazyFrame(schema=columns)  # types that do not fit are found without rows, too
    try:
        schema = nothing.sql(f"SELECT n_tokens, ({text}) AS result FROM self").collect().schema
    except ColumnNotFoundError as error:
        found = re.search(r'"(.*?)"', str(error))
        unknown = found[1] if found else "?"
        near = difflib.get_close_matches(unknown, names, n=3)
        raise SoftshardsError(
            f"{asked}: there is no column {unknown}",
            hint=f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}",
        ) from error
    except PolarsError as error:
        aggregate = "GROUP BY" in str(error)
        what = "it is about many rows, not about each" if aggregate else first_line(error)
        raise SoftshardsError(
            f"{asked}: {what}",
            hint="give one SQL expression on the columns of a row, as in WHERE of a SELECT",
        ) from error
    kind = schema.get("result", pl.Null())
    good = kind.is_numeric() or kind == pl.Boolean if number else kind == pl.Boolean
    if not good or len(schema) != 2:
        raise SoftshardsError(
            f"{asked} gives {kind}, not {'a number' if number else 'true or false'}",
            hint="compare it with something: `mean_nll < 4`" if not number else "compute a number",
        )
