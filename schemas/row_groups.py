"""All row groups of a label set, in columns: a set may have a million of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import INDEX_SCHEMA
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.arrow_lists import one_array
from schemas.fingerprint import sha256_json
from schemas.journal import ByteRange
from schemas.row_group import Kept, RowGroup

FOOTER_ROW_GROUP = -1
AT_ONCE = 4096
"""Row groups that iterating makes objects of at a time."""
HASH_WIDTH = 64
"""Characters of a hash."""
COUNTS = ("rows", "labels", "tokens")


@dataclass(frozen=True, kw_only=True)
class IndexPage:
    """A page of the index: its file, its hash, and the number of its rows."""

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class RowGroups(Sequence[RowGroup]):
    """A sequence of row groups that makes each `RowGroup` when it is asked for.

    Attributes:
        table: checked rows of the index (`schemas.arrow.INDEX_SCHEMA`): those of a shard together,
            its footer last.
        places: rows of `table`, int64 [n], that are the row groups of the sequence.
        kept: of a view, the rows that it keeps of each.
        pages: the pages that `table` comes from; it leaves out their lengths of rows.
    """

    table: pa.Table
    places: NDArray[np.int64]
    kept: tuple[Kept, ...] | None = None
    pages: tuple[IndexPage, ...] = ()

    @staticmethod
    def of(table: pa.Table, pages: tuple[IndexPage, ...] = ()) -> RowGroups:
        """Return all row groups of the rows of an index."""
        places = np.flatnonzero(as_numpy(table["row_group"]) != FOOTER_ROW_GROUP)
        return RowGroups(table=table.combine_chunks(), places=places, pages=pages)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> RowGroup: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[RowGroup, ...]: ...
    def __getitem__(self, at: int | slice) -> RowGroup | tuple[RowGroup, ...]:
        if isinstance(at, slice):
            return tuple(self._made(range(*at.indices(len(self)))))
        number = range(len(self))[at]  # negative ones count from the end, and IndexError
        return next(self._made(range(number, number + 1)))

    def __iter__(self) -> Iterator[RowGroup]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._made(range(start, min(start + AT_ONCE, len(self))))

    def _made(self, numbers: range) -> Iterator[RowGroup]:
        places = self.places[numbers.start : numbers.stop : numbers.step]
        used, which = np.unique(np.searchsorted(self._footers, places), return_inverse=True)
        footers = [_byte_range(row) for row in self._rows(self._footers[used])]
        for number, row, at in zip(numbers, self._rows(places), which.tolist()):
            yield RowGroup(
                shard=str(row["shard"]),
                index=int(row["row_group"]),
                bytes=_byte_range(row),
                footer=footers[at],
                kept=None if self.kept is None else self.kept[number],
            )

    def _rows(self, places: NDArray[np.int64]) -> list[dict[str, str | int]]:
        table = self.table.select(INDEX_SCHEMA.names)
        if len(places) == 1:  # a row group that training asks for: twice as fast as `take`
            place = int(places[0])
            return [{name: table[name][place].as_py() for name in INDEX_SCHEMA.names}]
        rows: list[dict[str, str | int]] = table.take(as_arrow(places)).to_pylist()
        return rows

    @cached_property
    def _footers(self) -> NDArray[np.int64]:
        """Rows of the table that are shards' footers, int64 [shards]."""
        return np.flatnonzero(as_numpy(self.table["row_group"]) == FOOTER_ROW_GROUP)

    @property
    def n_shards(self) -> int:
        """Number of shards in the index, whatever the view."""
        return len(self._footers)

    @cached_property
    def _used(self) -> pa.Table:
        """Rows of the footers of the shards that have row groups in the sequence."""
        footers = np.unique(np.searchsorted(self._footers, self.places))
        return self.table.take(as_arrow(self._footers[footers]))

    @property
    def shards(self) -> tuple[str, ...]:
        """Paths of the shards that have row groups in the sequence, in order."""
        return tuple(self._used["shard"].to_pylist())

    @property
    def stored_bytes(self) -> int:
        """Size of these shards."""
        return int(as_numpy(self._used["stop"]).sum())

    @cached_property
    def totals(self) -> tuple[int, int, int]:
        """Number of rows, of labels and of tokens to read."""
        if self.kept is not None:
            columns = [np.array([getattr(k, name) for k in self.kept], np.int64) for name in COUNTS]
        else:
            columns = [as_numpy(self.table[name])[self.places] for name in COUNTS]
        rows, labels, tokens = (int(column.sum(dtype=np.int64)) for column in columns)
        return rows, labels, tokens

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the hashes of all row groups, and of a view's selection."""
        column = self.table["sha256"]
        if self.kept:
            hashes = column.take(as_arrow(self.places)).to_pylist()
            return sha256_json([*hashes, [kept.bits for kept in self.kept]])
        # The same for a list of any length: its canonical JSON, written some thousands at a time.
        digest = hashlib.sha256(b"[")
        for start in range(0, len(self), AT_ONCE):
            hashes = one_array(column.take(as_arrow(self.places[start : start + AT_ONCE])))
            characters = np.frombuffer(hashes.buffers()[2], np.uint8)[: HASH_WIDTH * len(hashes)]
            text = np.empty((len(hashes), HASH_WIDTH + 3), np.uint8)
            text[:, 0] = text[:, -2] = ord('"')
            text[:, -1] = ord(",")
            text[:, 1:-2] = characters.reshape(-1, HASH_WIDTH)
            is_last = start + AT_ONCE >= len(self)
            digest.update(text.ravel()[: -1 if is_last else None].data)
        digest.update(b"]")
        return digest.hexdigest()

    def keep(self, kept: Sequence[Kept]) -> RowGroups:
        """Return the row groups that a view keeps rows of.

        Raises:
            ValueError: names the one that the set does not have, or has otherwise.
        """
        before = np.concatenate([[-1], self._footers])
        numbers = {shard: n for n, shard in enumerate(self._shard_names())}
        places = []
        for each in kept:
            number = numbers.get(each.shard)
            place = -1 if number is None else int(before[number]) + 1 + each.row_group
            if (
                number is None
                or place >= self._footers[number]
                or (self.table["sha256"][place].as_py() != each.sha256)
            ):
                raise ValueError(
                    f"has changed since the view was made: {each.shard}, row group "
                    f"{each.row_group} differs"
                )
            if any(getattr(each, name) > self.table[name][place].as_py() for name in COUNTS):
                raise ValueError(
                    f"has fewer rows, labels or tokens in {each.shard}, row group "
                    f"{each.row_group}, than the view says"
                )
            places.append(place)
        return replace(self, places=np.array(places, np.int64), kept=tuple(kept))

    def _shard_names(self) -> list[str]:
        names: list[str] = self.table["shard"].take(as_arrow(self._footers)).to_pylist()
        return names


def _byte_range(row: dict[str, str | int]) -> ByteRange:
    """Return the byte range of a row of the index, which was checked when the index was read."""
    return ByteRange.model_construct(
        start=row["start"],
        stop=row["stop"],
        sha256=row["sha256"],
        rows=row["rows"],
        labels=row["labels"],
        tokens=row["tokens"],
    )
