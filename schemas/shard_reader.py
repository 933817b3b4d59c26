"""Columns of one row group, from a file or a URL, of which nothing altered is believed.

What is checked is what is read: the footer by its hash, pages by their checksums (`"read"`), or
first the whole row group by its hash (`"full"`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas import compact
from schemas.arrow import COMPACT_COLUMNS, FOOTER_KEY, TOPK_COLUMNS
from schemas.codec import list_offsets
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_bytes
from schemas.journal import ByteRange
from schemas.manifest import Manifest
from schemas.remote import Remote, Stretch, is_url
from schemas.row_group import RowGroup
from schemas.shard import check_footer, stored_order
from schemas.version import PLAIN_1

Verify = Literal["read", "full", "none"]
"""Check the pages that are read; the whole row group first; nothing but footers."""


SHARDS_KNOWN = 256
"""Shards whose footer is kept: 0.1 MB each, in codec `compact/1` and 5 bytes an id beside it."""
T = TypeVar("T")


@dataclass(frozen=True)
class ShardReader:
    """Opens row groups of a set's shards.

    Attributes:
        folder: the set's, where it is on this machine.
        manifest: the set's.
        remote: where the shards are, if they are not in the folder.
    """

    folder: Path
    manifest: Manifest
    remote: Remote | None = None
    _footers: dict[str, pq.FileMetaData] = field(default_factory=dict, repr=False)
    _orders: dict[str, NDArray[np.int32]] = field(default_factory=dict, repr=False)

    @contextmanager
    def open(self, group: RowGroup, verify: Verify) -> Iterator[OpenGroup]:
        """Open a row group; read its columns while it is open.

        Behind a URL, `"full"` fetches the row group in one request and keeps it; the others ask for
        the columns that are read, unless the row group is kept.

        Raises:
            LabelSetError: the shard is missing, of another size or another set's, or (on opening
                or on reading) altered, or cannot be read.
        """
        path = self.path(group.shard)
        with _blamed(group, path):
            file = self._file(group, path, verify)
        with file:
            with _blamed(group, path):
                footer = self._footer(group, path)
                if verify == "full" and self.remote is None:
                    _hashed(file, group.bytes, f"row group {group.index}", path)
                parquet = pq.ParquetFile(
                    file,
                    metadata=footer,
                    page_checksum_verification=verify == "read",  # the hash covers them, too
                    pre_buffer=self.remote is not None,
                )
                order = self._order(group, footer)
            yield OpenGroup(path, parquet, group, order, verify)

    def path(self, shard: str) -> str:
        """Path or URL of a shard."""
        return f"{self.remote.url if self.remote else self.folder}/{shard}"

    def shard_facts(self, group: RowGroup) -> dict[str, Any]:
        """The JSON object in the footer of a row group's shard.

        Raises:
            LabelSetError: as `open`.
        """
        path = self.path(group.shard)
        with _blamed(group, path):
            return json.loads(self._footer(group, path).metadata[FOOTER_KEY])

    def _file(self, group: RowGroup, path: str, verify: Verify) -> pa.NativeFile:
        """The shard, or as much of it as is needed here; whole and proved behind a URL."""
        size, stretch = group.footer.stop, group.bytes
        if self.remote is None:
            file = pa.memory_map(path)
            if file.size() != size:
                raise damaged(f"the shard has {file.size()} bytes, the index says {size}", path)
            return file
        data = self.remote.kept(stretch)
        if data is None and verify == "full":
            data = self.remote.fetch(group.shard, stretch)
            _require_hash(data, stretch, f"row group {group.index}", path)
        place = self.remote.open(path) if data is None else Stretch(data, stretch.start, size)
        return pa.PythonFile(place, mode="r")

    def _footer(self, group: RowGroup, path: str) -> pq.FileMetaData:
        known = self._footers.get(group.shard)
        if known is not None:
            return known
        if self.remote is None:
            with pa.memory_map(path) as file:
                data = _hashed(file, group.footer, "the footer", path)
        else:
            data = pa.py_buffer(self.remote.fetch(group.shard, group.footer))
            _require_hash(data, group.footer, "the footer", path)
        metadata = pq.read_metadata(pa.BufferReader(data))
        check_footer(metadata, self.manifest, path)
        _keep(self._footers, group.shard, metadata)
        return metadata

    def _order(self, group: RowGroup, footer: pq.FileMetaData) -> NDArray[np.int32] | None:
        if self.manifest.codec == PLAIN_1:
            return None
        order = self._orders.get(group.shard)
        if order is None:
            order = stored_order(footer.metadata)
            if order is None:
                raise ValueError("the footer has no order of ids")
            _keep(self._orders, group.shard, order)
        return order


def _keep(known: dict[str, T], shard: str, what: T) -> None:
    """Keep what is known of a shard, and forget another's; several threads may be at it."""
    if len(known) >= SHARDS_KNOWN:
        known.pop(min(known), None)
    known[shard] = what


@dataclass(frozen=True)
class OpenGroup:
    """An open row group.

    Attributes:
        path, parquet: the shard; group: the row group.
        order: of the ids, in codec `compact/1`.
        verify: how its bytes are checked.
    """

    path: str
    parquet: pq.ParquetFile
    group: RowGroup
    order: NDArray[np.int32] | None
    verify: Verify

    def read(self, columns: Sequence[str], rows: NDArray[np.bool_] | None = None) -> pa.Table:
        """Plain columns of the rows that the view keeps, and of those the ones asked for.

        Args:
            columns: in this order.
            rows: bool [group.rows], which rows; all by default. Others are not decoded.

        Raises:
            LabelSetError: a page or the whole row group is altered.
        """
        if not columns:
            return pa.table({})
        others = [name for name in columns if name not in TOPK_COLUMNS]
        coded = self.order is not None and len(others) < len(columns)
        names = [*others, *COMPACT_COLUMNS] if coded else list(columns)
        with _blamed(self.group, self.path):
            several = pa.cpu_count() > 1  # a pool of one thread only costs switches
            table = self.parquet.read_row_group(
                self.group.index, columns=names, use_threads=several
            )
            if self.verify == "read":
                _require_all_values(table, self.parquet.metadata.row_group(self.group.index))
            if self.group.kept is not None:
                table = table.filter(pa.array(self.group.kept.mask(table.num_rows)))
            if rows is not None:
                table = table.filter(pa.array(rows))
            if coded and self.order is not None:
                table = compact.unpack(table, self.order)
        return table.select(list(columns))


def _require_all_values(table: pa.Table, group: pq.RowGroupMetaData) -> None:
    """Checksums cover pages, not their headers, which say how many values to take of a page."""
    for chunk in (group.column(index) for index in range(group.num_columns)):
        name = chunk.path_in_schema.split(".")[0]
        if name in table.column_names:
            found = sum(_values(array) for array in table[name].chunks)
            if found != chunk.num_values:
                raise ValueError(f"column {name} has {found} values in place of {chunk.num_values}")


def _values(array: pa.Array) -> int:
    """Values of a column as Parquet counts them: an empty or null list counts as one."""
    if not pa.types.is_list(array.type):
        return len(array)
    empty = int((np.diff(list_offsets(array)) == 0).sum())
    return empty + _values(array.flatten())


@contextmanager
def _blamed(group: RowGroup, path: str) -> Iterator[None]:
    """Whatever goes wrong while a shard is read is said of the shard."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged("the shard is missing", path) from error
    except (ValueError, OSError, pa.ArrowException) as error:
        cannot = " (or it cannot be read)" if is_url(path) else ""
        raise damaged(f"row group {group.index} was altered{cannot}: {error}", path) from error


def _hashed(file: Any, stretch: ByteRange, what: str, path: str) -> pa.Buffer:
    file.seek(stretch.start)
    data = file.read_buffer(stretch.stop - stretch.start)
    _require_hash(data, stretch, what, path)
    return data


def _require_hash(data: Any, stretch: ByteRange, what: str, path: str) -> None:
    if sha256_bytes(memoryview(data)) != stretch.sha256:
        raise damaged(f"{what} was altered (bytes {stretch.start} to {stretch.stop})", path)


def damaged(what: str, path: str) -> LabelSetError:
    """The error that names a shard and how to have it made again."""
    if is_url(path):
        hint = "copy the label set there again; `labeler verify` says whether the original is whole"
    else:
        hint = (
            "`labeler repair` puts the shard aside; the same `labeler label` command then labels "
            "its unit again, and nothing else"
        )
    return LabelSetError(what, path=path, hint=hint)
