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
from typing import TYPE_CHECKING, Any, Literal

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
from schemas.shard import check_footer, stored_order
from schemas.version import PLAIN_1

if TYPE_CHECKING:
    from schemas.labelset import RowGroup

Verify = Literal["read", "full", "none"]
"""Check the pages that are read; the whole row group first; nothing but footers."""


@dataclass(frozen=True)
class ShardReader:
    """Opens row groups of a set's shards.

    Attributes:
        root: the set's folder, or its URL for fsspec.
        manifest: the set's.
        options: of fsspec's filesystem.
    """

    root: str
    manifest: Manifest
    options: dict[str, Any] = field(default_factory=dict)
    _footers: dict[str, pq.FileMetaData] = field(default_factory=dict, repr=False)
    _orders: dict[str, NDArray[np.int32]] = field(default_factory=dict, repr=False)

    @contextmanager
    def open(self, group: RowGroup, verify: Verify) -> Iterator[OpenGroup]:
        """Open a row group; read its columns while it is open.

        Raises:
            LabelSetError: the shard is missing, of another size or another set's, or (on opening
                or on reading) altered.
        """
        path = f"{self.root}/{group.shard}"
        with _blamed(group, path):
            file = self._file(path)
        with file:
            with _blamed(group, path):
                footer = self._footer(file, group, path)
                if verify == "full":
                    _hashed(file, group.bytes, f"row group {group.index}", path)
                parquet = pq.ParquetFile(
                    file,
                    metadata=footer,
                    page_checksum_verification=verify == "read",  # the hash covers them, too
                    pre_buffer=_remote(path),
                )
                order = self._order(group, footer)
            yield OpenGroup(path, parquet, group, order, verify)

    def shard_facts(self, group: RowGroup) -> dict[str, Any]:
        """The JSON object in the footer of a row group's shard.

        Raises:
            LabelSetError: as `open`.
        """
        with self.open(group, "none"):
            return json.loads(self._footers[group.shard].metadata[FOOTER_KEY])

    def _file(self, path: str) -> Any:
        if not _remote(path):
            return pa.memory_map(path)
        import fsspec

        # No read-ahead: PyArrow asks for all the columns it wants, and for nothing else.
        options = {"cache_type": "none"}
        filesystem, place = fsspec.core.url_to_fs(path, **self.options)
        return pa.PythonFile(filesystem.open(place, "rb", **options), mode="r")

    def _footer(self, file: Any, group: RowGroup, path: str) -> pq.FileMetaData:
        if file.size() != group.footer.stop:
            raise damaged(
                f"the shard has {file.size()} bytes, the index says {group.footer.stop}", path
            )
        if group.shard not in self._footers:
            data = _hashed(file, group.footer, "the footer", path)
            metadata = pq.read_metadata(pa.BufferReader(data))
            check_footer(metadata, self.manifest, Path(path))
            self._footers[group.shard] = metadata
        return self._footers[group.shard]

    def _order(self, group: RowGroup, footer: pq.FileMetaData) -> NDArray[np.int32] | None:
        if self.manifest.codec == PLAIN_1:
            return None
        if group.shard not in self._orders:
            order = stored_order(footer.metadata)
            if order is None:
                raise ValueError("the footer has no order of ids")
            self._orders[group.shard] = order
        return self._orders[group.shard]


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
        raise damaged(f"row group {group.index} was altered: {error}", path) from error


def _hashed(file: Any, stretch: ByteRange, what: str, path: str) -> pa.Buffer:
    file.seek(stretch.start)
    data = file.read_buffer(stretch.stop - stretch.start)
    if sha256_bytes(memoryview(data)) != stretch.sha256:
        raise damaged(f"{what} was altered (bytes {stretch.start} to {stretch.stop})", path)
    return data


def _remote(path: str) -> bool:
    return "://" in path


def damaged(what: str, path: str) -> LabelSetError:
    """The error that names a shard and how to have it made again."""
    return LabelSetError(
        what,
        path=path,
        mend="`labeler repair` puts the shard aside; the same `labeler label` command then labels "
        "its unit again, and nothing else",
    )
