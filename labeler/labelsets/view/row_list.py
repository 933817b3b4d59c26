"""The list of rows: their scalars in memory, filtered, sorted and searched with Polars."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from labeler.labelsets.common.row_matching import match_rows, row_table
from labeler.labelsets.common.vocabulary import Vocabulary
from schemas import LabelSet, SoftshardsError
from schemas.arrow import KEY_COLUMNS

MEANS = ("mean_entropy", "mean_nll", "coverage")
COLUMNS = (*KEY_COLUMNS, "source", "finish_reason", "n_tokens", "n_labels", *MEANS)
SORTS = ("number", "id", "n_tokens", "n_labels", *MEANS, "nll_difference")
HIDDEN = ("parent_id", "group", "row", "group_b", "row_b")
"""Columns of the frame that no list shows."""
CHOICES = 200
"""Most sources or finish reasons that a page offers."""
BINS = 32


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows, in which order.

    Attributes:
        search: text to find, in any case, in the id, the prompt or the generation, or in the text
            of all tokens where a row has neither of the last two.
        source, finish_reason: to equal; None takes any.
        ranges: (one of MEANS, least, most), both ends included.
        sort: one of SORTS; descending: largest first. Rows without a value come last.
    """

    search: str = ""
    source: str | None = None
    finish_reason: str | None = None
    ranges: tuple[tuple[str, float, float], ...] = ()
    sort: str = "number"
    descending: bool = False


def parse_query(values: Mapping[str, str]) -> Query:
    """A query from the parameters of a URL; `min_coverage` and the like are the ranges' ends.

    Raises:
        SoftshardsError: a number is none, or the order is unknown.
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
        frame: one line a row: `number`, COLUMNS, its row group and place in that (`group`, `row`);
            with a second set, those there (`group_b`, `row_b`, null where it lacks the row) and
            `nll_difference`, the second set's mean NLL less the first's.
    """

    frame: pl.DataFrame
    _labels: LabelSet = field(repr=False)
    _vocabulary: Vocabulary = field(repr=False)

    def page(self, query: Query, offset: int, limit: int) -> dict[str, Any]:
        """`limit` rows from `offset` on, with the number of all that match, as JSON values."""
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
        """What a search looks through, lower case, a row. Read and kept at the first search."""
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

    def facts(self) -> dict[str, Any]:
        """What the page's filters offer: sources and finish reasons, and how the means spread."""
        return {
            "sources": self._choices("source"),
            "finish_reasons": self._choices("finish_reason"),
            "spreads": {name: spread for name in MEANS if (spread := self._spread(name))},
        }

    def _choices(self, name: str) -> list[dict[str, Any]]:
        counts = self.frame[name].drop_nulls().value_counts(sort=True).head(CHOICES)
        return [{"value": value, "rows": rows} for value, rows in counts.rows()]

    def _spread(self, name: str) -> dict[str, Any] | None:
        """Least, most and a histogram between; None where no row has a value."""
        values = self.frame[name].drop_nulls().drop_nans().cast(pl.Float64)
        if not len(values):
            return None
        least, most = float(values.min()), float(values.max())  # type: ignore[arg-type]
        width = (most - least) / BINS or 1.0
        places = ((values - least) / width).cast(pl.Int32).clip(0, BINS - 1)
        counts = dict(places.value_counts().rows())
        return {"least": least, "most": most, "counts": [counts.get(b, 0) for b in range(BINS)]}


def list_rows(labels: LabelSet, other: LabelSet | None, vocabulary: Vocabulary) -> Listing:
    """Read the scalars of all rows; label columns are not touched.

    The bytes are not hashed here, which would read the whole set: a row is verified when it is
    shown.
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
