"""Parts of a held-out set to measure separately: by kind, source, length, or a column of `meta`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError, SoftshardsError
from schemas.arrow import SPAN_KINDS
from schemas.fingerprint import canonical_json
from schemas.json_values import parse_object

if TYPE_CHECKING:
    from trainer.data.window import Window

KIND, SOURCE, LENGTH = "kind", "source", "length"
ALWAYS = (KIND, SOURCE, LENGTH)
"""Dimensions that every model is measured by."""
META = "meta."
MAX_GROUPS = 100
"""Groups per dimension. Values with fewer rows than those of the others are pooled."""
SHOWN_KEYS = 20
LENGTHS = (128, 512, 2048, 8192)
"""Tokens of a sequence at which the next group begins."""
LENGTH_NAMES = (
    f"< {LENGTHS[0]}",
    *(f"{low}-{high - 1}" for low, high in itertools.pairwise(LENGTHS)),
    f">= {LENGTHS[-1]}",
)

Value = str | None
"""What the rows of a group have in common; None for rows without a value."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A division of the rows into groups, each with a number that is unique in its `Grouping`.

    Attributes:
        name: "source", "length" or "meta.KEY".
        groups: number of each value's group; values that are missing here are pooled.
        pooled_into: number of the group of the other values.
        pooled: how many other values there are.
    """

    name: str
    groups: dict[Value, int]
    pooled_into: int
    pooled: int = 0

    def numbers(self, window: Window, rows: NDArray[np.int64]) -> list[int]:
        """Return the number of each row's group."""
        return [self.groups.get(value, self.pooled_into) for value in self._values(window, rows)]

    def _values(self, window: Window, rows: NDArray[np.int64]) -> Iterable[Value]:
        if self.name == SOURCE:
            return (window.sources[row] or None for row in rows)
        if self.name == LENGTH:
            lengths = window.token_offsets[rows + 1] - window.token_offsets[rows]
            return (LENGTH_NAMES[at] for at in np.searchsorted(LENGTHS, lengths, side="right"))
        path = self.name.removeprefix(META)
        return (_meta_value(window.meta[row], path, window.keys[row]) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Numbered groups: first the kinds of spans, which divide labels, then those of rows.

    Attributes:
        dimensions: divisions of the rows.
        size: number of groups.
    """

    dimensions: tuple[Dimension, ...] = ()
    size: int = field(default=len(SPAN_KINDS))

    @property
    def needs_meta(self) -> bool:
        """True if rows must be read with their `meta`."""
        return any(dimension.name.startswith(META) for dimension in self.dimensions)

    def numbers(self, window: Window, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each row's group in each dimension: [dimensions, rows]."""
        found = [dimension.numbers(window, rows) for dimension in self.dimensions]
        return np.array(found, np.int64).reshape(len(found), len(rows))


def check_dimensions(names: Iterable[str]) -> None:
    """Refuse unknown values of --by.

    Raises:
        SoftshardsError: names the first one.
    """
    for name in names:
        if name not in ALWAYS and not (name.startswith(META) and len(name) > len(META)):
            raise SoftshardsError(
                f"--by {name}: there is no such division",
                hint="give kind, source, length, or a column of the corpus such as meta.lang",
            )


def plan_groups(labels: LabelSet, by: Iterable[str]) -> Grouping:
    """Find the groups of a label set, in one pass over the columns that decide them.

    Args:
        labels: the set; its rows are not verified here, but when they are measured.
        by: dimensions besides those of `ALWAYS`.

    Raises:
        LabelSetError: the `meta` of a row is no JSON object.
        SoftshardsError: no row has a value in one of the dimensions.
    """
    paths = [name.removeprefix(META) for name in dict.fromkeys(by) if name.startswith(META)]
    counts: dict[str, Counter[Value]] = {name: Counter() for name in (SOURCE, *paths)}
    keys: Counter[str] = Counter()
    columns = ["id", "chunk", "sample", "source", *(["meta"] if paths else [])]
    for group in labels.row_groups:
        table = labels.read_row_group(group, columns, verify=False)
        counts[SOURCE].update(source or None for source in table["source"].to_pylist())
        if paths:
            _count_meta(table, {path: counts[path] for path in paths}, keys)
    for path in paths:
        if not any(value is not None for value in counts[path]):
            known = ", ".join(f"{META}{key}" for key, _ in keys.most_common(SHOWN_KEYS))
            raise SoftshardsError(
                f"--by {META}{path}: no row of the label set has a value for it",
                path=labels.place,
                hint=f"the rows have {known}" if known else "the rows have no meta at all",
            )
    start, found = len(SPAN_KINDS), []
    divided: dict[str, list[Value]] = {
        SOURCE: [value for value, _ in counts[SOURCE].most_common()],
        LENGTH: list(LENGTH_NAMES),
        **{META + path: [value for value, _ in counts[path].most_common()] for path in paths},
    }
    for name, values in divided.items():
        kept = values[:MAX_GROUPS]
        groups = {value: start + at for at, value in enumerate(kept)}
        start += len(kept) + 1
        pooled = len(values) - len(kept)
        found.append(Dimension(name=name, groups=groups, pooled_into=start - 1, pooled=pooled))
    return Grouping(dimensions=tuple(found), size=start)


def _count_meta(table: pa.Table, counts: dict[str, Counter[Value]], keys: Counter[str]) -> None:
    from trainer.data.window import row_names  # imports torch, which reused results do not need

    for text, name in zip(table["meta"].to_pylist(), row_names(table)):
        keys.update(list(_parse(text, name)))
        for path, counter in counts.items():
            counter[_meta_value(text, path, name)] += 1


def _meta_value(text: str | None, path: str, row: str) -> Value:
    """Return what `meta` has under a key or a dotted path, as text."""
    value: object = _parse(text, row)
    if isinstance(value, dict) and path in value:
        value = value[path]
    else:
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, str):
        return value
    return canonical_json(value).decode()


def _parse(text: str | None, row: str) -> dict[str, object]:
    try:
        return parse_object(text) if text else {}
    except ValueError as error:
        raise LabelSetError(
            f"meta: {error}", row=row, hint="run `labeler verify` on the label set"
        ) from error
