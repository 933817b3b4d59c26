"""The list of rows: scalars in memory, filtered, sorted and searched with Polars."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import polars as pl

from labeler.labelsets.common.row_matching import match_rows, row_table
from labeler.labelsets.common.vocabulary import Vocabulary
from schemas import LabelSet, SoftshardsError
from schemas.arrow import KEY_COLUMNS

MEANS = ("mean_entropy", "mean_nll", "coverage")
COLUMNS = (*KEY_COLUMNS, "source", "finish_reason", "n_tokens", "n_labels", *MEANS)
SORTS = ("number", "id", "n_tokens", "n_labels", *MEANS, "nll_difference")
HIDDEN = ("parent_id", "group", "row", "group_b", "row_b")
"""Columns of the frame that the list does not show."""
CHOICES = 200
"""Largest number of sources or finish reasons in a filter."""
BINS = 32


class RowPage(TypedDict):
    """Rows of the list as JSON values, and the number of all matches."""

    total: int
    rows: list[dict[str, object]]


class Choice(TypedDict):
    """A value that a filter offers, and the number of its rows."""

    value: str
    rows: int


class Spread(TypedDict):
    """Minimum, maximum and histogram of a scalar."""

    least: float
    most: float
    counts: list[int]


class FilterFacts(TypedDict):
    """The choices of the filters."""

    sources: list[Choice]
    finish_reasons: list[Choice]
    spreads: dict[str, Spread]


@dataclass(frozen=True, kw_only=True)
class Query:
    """A selection of rows, and their order.

    Attributes:
        search: text to find, ignoring case, in the id, the prompt and the generation. Rows without
            prompt and generation are searched in the text of their tokens.
        source, finish_reason: values that must match; None matches any.
        ranges: (one of MEANS, minimum, maximum), both inclusive.
        sort: one of SORTS; rows without a value come last.
        descending: largest first.
    """

    search: str = ""
    source: str | None = None
    finish_reason: str | None = None
    ranges: tuple[tuple[str, float, float], ...] = ()
    sort: str = "number"
    descending: bool = False


def parse_query(values: Mapping[str, str]) -> Query:
    """Read a query from the parameters of a URL, such as `min_coverage` for the end of a range.

    Raises:
        SoftshardsError: a number or the order is invalid.
    """
    ranges = []
    for name in MEANS:
        least, most = values.get(f"min_{name}"), values.get(f"max_{name}")
        if least or most:
            ranges.append((name, _number(least, float("-inf")), _number(most, float("inf"))))
    sort = values.get("sort", "number")
    if sort not in SORTS:
        raise SoftshardsError(f"cannot sort by {sort!r}", hint=f"sort by {', '.join(SORTS)}")
    return Query(
        search=values.get("search", ""),
        source=values.get("source"),
        finish_reason=values.get("finish_reason"),
        ranges=tuple(ranges),
        sort=sort,
        descending=values.get("descending") == "1",
    )


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise SoftshardsError(f"{text!r} is not a number", hint="give a number") from None


@dataclass(frozen=True, eq=False)
class Listing:
    """The rows of a label set, with their partners in a second one.

    Attributes:
        frame: one line per row: `number`, COLUMNS, its row group and place in it (`group`, `row`).
            With a second set also `group_b` and `row_b`, null where it lacks the row, and
            `nll_difference`, the second set's mean NLL minus the first's.
    """

    frame: pl.DataFrame
    _labels: LabelSet = field(repr=False)
    _vocabulary: Vocabulary = field(repr=False)

    def page(self, query: Query, offset: int, limit: int) -> RowPage:
        """Return `limit` rows from `offset` on, and the number of matches, as JSON values."""
        found = self._matching(query)
        rows = found.slice(offset, limit).drop(*HIDDEN, strict=False)
        return {"total": found.height, "rows": rows.to_dicts()}

    @functools.lru_cache(maxsize=8)  # noqa: B019 (a listing lives as long as the process)
    def _matching(self, query: Query) -> pl.DataFrame:
        keep = [pl.col(name).is_between(least, most) for name, least, most in query.ranges]
        for name in ("source", "finish_reason"):
            if (value := getattr(query, name)) is not None:
                keep.append(pl.col(name) == value)
        found = self.frame
        if query.search:
            needle = query.search.lower()
            found = found.filter(self.texts.str.contains(needle, literal=True))
        found = found.filter(*keep) if keep else found
        if query.sort != "number" or query.descending:
            found = found.sort(
                query.sort, descending=query.descending, nulls_last=True, maintain_order=True
            )
        return found

    @functools.cached_property
    def texts(self) -> pl.Series:
        """The lower-case text that a search looks through, per row; read at the first search."""
        names = ("id", "prompt", "generation")
        no_text = pl.col("prompt").is_null() & pl.col("generation").is_null()
        parts = []
        for group in self._labels.row_groups:
            rows = pl.DataFrame(self._labels.read_row_group(group, names, verify=False))
            if rows.select(no_text.any()).item():
                table = self._labels.read_row_group(group, ("input_ids",), verify=False)
                decoded = self._vocabulary.decode(table["input_ids"].to_pylist())
                text = pl.Series(decoded, dtype=pl.String)
                rows = rows.with_columns(prompt=pl.when(no_text).then(text).otherwise("prompt"))
            joined = pl.concat_str(names, separator="\n", ignore_nulls=True)
            parts.append(rows.select(joined.str.to_lowercase()).to_series())
        return pl.concat(parts) if parts else pl.Series(dtype=pl.String)

    def facts(self) -> FilterFacts:
        """Return the choices of the filters: sources, finish reasons, histograms of the means."""
        return {
            "sources": self._choices("source"),
            "finish_reasons": self._choices("finish_reason"),
            "spreads": {name: spread for name in MEANS if (spread := self._spread(name))},
        }

    def _choices(self, name: str) -> list[Choice]:
        counts = self.frame[name].drop_nulls().value_counts(sort=True).head(CHOICES)
        return [{"value": value, "rows": rows} for value, rows in counts.rows()]

    def _spread(self, name: str) -> Spread | None:
        """Return minimum, maximum and histogram; None if no row has a value."""
        values = self.frame[name].drop_nulls().drop_nans().cast(pl.Float64)
        if not len(values):
            return None
        least, most = float(values.min()), float(values.max())  # type: ignore[arg-type]
        width = (most - least) / BINS or 1.0
        places = ((values - least) / width).cast(pl.Int32).clip(0, BINS - 1)
        counts = dict(places.value_counts().rows())
        return {"least": least, "most": most, "counts": [counts.get(b, 0) for b in range(BINS)]}


def list_rows(labels: LabelSet, other: LabelSet | None, vocabulary: Vocabulary) -> Listing:
    """Read the scalars of all rows, but no labels.

    Nothing is hashed here, as that would read the whole set. A row is verified when it is shown.

    Raises:
        SoftshardsError: a set has no rows.
    """
    frame = _scalars(labels, (*COLUMNS, "parent_id")).with_row_index("number")
    if other is not None:
        theirs = _scalars(other, (*KEY_COLUMNS, "parent_id", "mean_nll"))
        frame = frame.join(
            match_rows(frame, theirs), on="number", how="left", maintain_order="left"
        )
        difference = pl.col("mean_nll_b") - pl.col("mean_nll")
        frame = frame.with_columns(nll_difference=difference).drop("mean_nll_b")
    return Listing(frame, labels, vocabulary)


def _scalars(labels: LabelSet, columns: tuple[str, ...]) -> pl.DataFrame:
    # JSON has neither NaN nor infinity.
    means = [pl.when(pl.col(n).is_finite()).then(pl.col(n)).alias(n) for n in MEANS if n in columns]
    return row_table(labels, columns).with_columns(means)
