"""Columns of one row group, from a file or a URL, with verified reads.

The footer is always checked by its hash. Of the data, either the pages that are read are checked
by their checksums (`"read"`), or the whole row group is first checked by its hash (`"full"`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas import compact
from schemas.arrow import COMPACT_COLUMNS, FOOTER_KEY, TOPK_COLUMNS
from schemas.arrow_alloc import as_numpy
from schemas.arrow_lists import list_offsets, one_array
from schemas.errors import LabelSetError
from schemas.file_names import HIDDEN, is_state_column
from schemas.fingerprint import sha256_bytes
from schemas.hidden_part import RESTORE
from schemas.journal import ByteRange
from schemas.json_values import parse_object
from schemas.manifest import Manifest
from schemas.parquet_sizes import Chunk, Footer, parse_footer, require_plausible
from schemas.remote import PartialFile, Remote, is_url
from schemas.row_group import RowGroup
from schemas.set_paths import set_file
from schemas.shard import check_footer, stored_order
from schemas.size_limits import require_cells
from schemas.version import PLAIN_1

Verify = Literal["read", "full", "none"]
"""Data to verify: the pages that are read, the whole row group first, or none."""

SHARDS_KNOWN = 256
"""Shards whose footers stay in memory: 0.1 MB each, and in `compact/1` 5 more bytes per id."""
SHARDS_OPEN = 4
"""Files that stay open between reads: opening one takes as long as reading 2 % of a row group."""
K = TypeVar("K", str, tuple[str, bool])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """A shard as Parquet, and what tells whether its path still leads to the same file."""

    file: pa.NativeFile
    parquet: pq.ParquetFile
    stamp: tuple[int, ...] = ()


class HiddenSource(Protocol):
    """Reads columns of hidden states together with columns of the shard."""

    def read_beside(
        self, shard: OpenGroup, columns: Sequence[str], rows: NDArray[np.bool_] | None
    ) -> pa.Table:
        """Read columns of both, in this order, as `OpenGroup.read` does."""


@dataclass(frozen=True)
class ShardReader:
    """Opens row groups of a set's shards.

    Attributes:
        folder: the set's folder, where it is on this machine.
        manifest: the set's manifest.
        remote: the location of the shards, if not the folder.
        hidden: reads the hidden states of their rows.
    """

    folder: Path
    manifest: Manifest
    remote: Remote | None = None
    hidden: HiddenSource | None = None
    _footers: dict[str, Footer] = field(default_factory=dict, repr=False)
    _orders: dict[str, NDArray[np.int32]] = field(default_factory=dict, repr=False)
    _idle: dict[tuple[str, bool], _OpenShard] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type[ShardReader], tuple[object, ...]]:
        """Pickle a reader without open files."""
        return type(self), (self.folder, self.manifest, self.remote, self.hidden)

    @contextmanager
    def open(
        self, group: RowGroup, verify: Verify, data: bytes | None = None
    ) -> Iterator[OpenGroup]:
        """Open a row group; read its columns while it is open.

        From a URL, `"full"` fetches the row group in one request and caches it. Otherwise only the
        columns that are read are fetched, unless the row group is cached.

        Args:
            group: the row group.
            verify: the data to verify.
            data: its bytes as `fetch` returned them.

        Raises:
            LabelSetError: the shard is missing, a link, of a different size, from a different set,
                altered (found on opening or on reading), or cannot be read.
        """
        path = f"{self.folder if self.remote is None else self.remote.url}/{group.shard}"
        with as_damage_error(group, path):
            if self.remote is None:
                shard = self._open_local(group, path, verify)
                content = _local_content(shard.file, group)
            else:
                shard, content = self._open_remote(self.remote, group, path, verify, data)
            footer = self._footer(group, path)
            _require_counts(footer, group)
            if verify == "full" and self.remote is None:
                stored = content.view(group.bytes.start, group.bytes.stop)
                _require_hash(stored, group.bytes, f"row group {group.index}", path)
            order = self._order(group, footer)
        identity = self.manifest.identity
        widest = identity.width, identity.draws or 0
        yield OpenGroup(
            path, shard.parquet, group, footer, content, order, widest, verify, self.hidden
        )
        if self.remote is None:  # no other thread has it now
            _remember(self._idle, (group.shard, verify == "read"), shard, SHARDS_OPEN)

    def fetch(self, group: RowGroup) -> bytes:
        """Return the bytes of a row group behind a URL, unverified, and keep its shard's footer.

        Raises:
            LabelSetError: as `open`.
        """
        assert self.remote is not None, "the caller checked"
        path = self.path(group.shard)
        with as_damage_error(group, path):
            data = self.remote.fetch(group.shard, group.bytes)
            self._footer(group, path)
        return data

    def path(self, shard: str) -> str:
        """Return the path or URL of a shard.

        Raises:
            LabelSetError: the shard, or the folder of shards, is a link.
        """
        return f"{self.remote.url}/{shard}" if self.remote else str(set_file(self.folder, shard))

    def shard_facts(self, group: RowGroup) -> dict[str, Any]:
        """Return the JSON object in the footer of a row group's shard.

        Raises:
            LabelSetError: as `open`.
        """
        path = self.path(group.shard)
        with as_damage_error(group, path):
            return parse_object(self._footer(group, path).metadata.metadata[FOOTER_KEY])

    def _open_local(self, group: RowGroup, path: str, verify: Verify) -> _OpenShard:
        """Open a shard on this machine, or take it from those that stayed open."""
        known = self._idle.pop((group.shard, verify == "read"), None)
        if known is not None and known.stamp == _stamp(Path(path)):
            return known  # the same file, which was no link when it was opened
        place = set_file(self.folder, group.shard)
        stamp = _stamp(place)
        file = pa.memory_map(str(place))
        found, size = file.size(), group.footer.stop
        if found != size:
            raise damaged(f"the shard has {found} bytes, the index says {size}", path)
        return _OpenShard(file, self._parquet(file, group, path, verify), stamp)

    def _open_remote(
        self, remote: Remote, group: RowGroup, path: str, verify: Verify, data: bytes | None
    ) -> tuple[_OpenShard, PartialFile]:
        """Open the part of a shard behind a URL that is needed, verified if `"full"`."""
        size, byte_range = group.footer.stop, group.bytes
        start, stop = byte_range.start, byte_range.stop
        fetched = data is not None
        data = data if fetched else remote.cached(byte_range)
        if data is None and verify == "full":
            data, fetched = remote.fetch(group.shard, byte_range), True
        if data is not None and fetched:
            _require_hash(data, byte_range, f"row group {group.index}", path)
        if data is None:
            content = PartialFile(
                b"", start, size, stop=stop, fetch=lambda a, b: remote.read(group.shard, a, b)
            )
        else:
            content = PartialFile(data, start, size)
        file = pa.PythonFile(content, mode="r")
        return _OpenShard(file, self._parquet(file, group, path, verify)), content

    def _parquet(
        self, file: pa.NativeFile, group: RowGroup, path: str, verify: Verify
    ) -> pq.ParquetFile:
        return pq.ParquetFile(
            file,
            metadata=self._footer(group, path).metadata,
            page_checksum_verification=verify == "read",  # the hash covers the pages, too
        )

    def _footer(self, group: RowGroup, path: str) -> Footer:
        known = self._footers.get(group.shard)
        if known is not None:
            return known
        if self.remote is None:
            with pa.memory_map(path) as file:
                data = _read_verified(file, group.footer, "the footer", path)
        else:
            data = pa.py_buffer(self.remote.fetch(group.shard, group.footer))
            _require_hash(data, group.footer, "the footer", path)
        footer = parse_footer(memoryview(data).cast("B"))
        self._check(footer.metadata, path)
        _remember(self._footers, group.shard, footer, SHARDS_KNOWN)
        return footer

    def _check(self, metadata: pq.FileMetaData, path: str) -> None:
        check_footer(metadata, self.manifest, path)

    def _order(self, group: RowGroup, footer: Footer) -> NDArray[np.int32] | None:
        if self.manifest.codec == PLAIN_1:
            return None
        order = self._orders.get(group.shard)
        if order is None:
            order = stored_order(footer.metadata.metadata)
            if order is None:
                raise ValueError("the footer has no order of ids")
            _remember(self._orders, group.shard, order, SHARDS_KNOWN)
        return order


def _remember(known: dict[K, T], key: K, value: T, most: int) -> None:
    """Keep a value of a shard and drop one of another shard; safe to call from several threads."""
    if len(known) >= most:
        known.pop(min(known), None)
    known[key] = value


def _stamp(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _local_content(file: pa.NativeFile, group: RowGroup) -> PartialFile:
    """Return the bytes of a row group in an open shard."""
    start, stop = group.bytes.start, group.bytes.stop
    file.seek(start)
    return PartialFile(memoryview(file.read_buffer(stop - start)), start, group.footer.stop)


@dataclass(frozen=True)
class OpenGroup:
    """An open row group.

    Attributes:
        path: path or URL of the shard.
        parquet: the open shard.
        group: the row group.
        footer: the footer of the shard.
        content: its bytes.
        order: the order of ids, in codec `compact/1`.
        widest: most ids and most drawn ids per position.
        verify: the data to verify.
        hidden: reads the hidden states of these rows.
    """

    path: str
    parquet: pq.ParquetFile
    group: RowGroup
    footer: Footer
    content: PartialFile
    order: NDArray[np.int32] | None
    widest: tuple[int, int]
    verify: Verify
    hidden: HiddenSource | None = None

    def read(self, columns: Sequence[str], rows: NDArray[np.bool_] | None = None) -> pa.Table:
        """Read plain columns of the rows, or of the rows that a view keeps.

        Columns of hidden states (`final`, `final_far`, `layer_3`, ...) come from a file beside the
        shard, which is not opened for other columns.

        Args:
            columns: the columns, in this order.
            rows: bool [group.rows], the rows to read; all by default. Other rows are not decoded.

        Raises:
            LabelSetError: a page or the whole row group is altered, or would take more memory than
                `schemas.size_limits` allows.
        """
        if not columns:
            return pa.table({})
        if self.hidden is not None and any(is_state_column(name) for name in columns):
            return self.hidden.read_beside(self, columns, rows)
        others = [name for name in columns if name not in TOPK_COLUMNS]
        coded = self.order is not None and len(others) < len(columns)
        names = [*others, *COMPACT_COLUMNS] if coded else list(columns)
        with as_damage_error(self.group, self.path):
            chunks = self._require_sizes(names)
            several = pa.cpu_count() > 1  # a pool of one thread only costs context switches
            table = self.parquet.read_row_group(
                self.group.index, columns=names, use_threads=several
            )
            if self.verify == "read":
                _require_all_values(table, chunks)
            self._require_lists(table)
            if self.group.kept is not None:
                table = table.filter(pa.array(self.group.kept.mask(table.num_rows)))
            if rows is not None:
                table = table.filter(pa.array(rows))
            if coded and self.order is not None:
                table = compact.unpack(table, self.order)
        return table.select(list(columns))

    def _require_sizes(self, names: Sequence[str]) -> list[Chunk]:
        """Check the sizes that footer and pages state, before memory is taken for them.

        Returns:
            The columns to read.
        """
        stored = self.group.bytes.stop - self.group.bytes.start
        chunks = self.footer.chunks(self.group.index, names)
        self.content.load(_chunk_ranges(chunks))
        require_plausible(chunks, read=self.content.view, stored=stored)
        positions = [chunk.values for chunk in chunks if chunk.name in POSITION_COLUMNS]
        if positions:
            require_cells(min(positions), sum(self.widest) + SPARE_WIDTH, stored)
        return chunks

    def _require_lists(self, table: pa.Table) -> None:
        """Check what decoding relies on: UTF-8, no nulls inside lists, no list or span too long."""
        for name in table.column_names:
            for chunk in table[name].chunks:
                kind = chunk.type
                if not pa.types.is_list(kind):
                    chunk.validate(full=True)  # text must be UTF-8
                    continue
                _require_no_nulls(chunk.values, name)
                if pa.types.is_struct(kind.value_type):
                    chunk.validate(full=True)
        k, draws = self.widest
        for name, longest in (("topk_ids", k), ("topk_k", k), ("sample_ids", draws)):
            if name in table.column_names:
                lists = one_array(table[name]).flatten()
                lengths = as_numpy(lists if name == "topk_k" else pc.list_value_length(lists))
                most = lengths.max(initial=0)
                if most > longest or lengths.min(initial=0) < 0:
                    raise ValueError(f"{most} ids per position, more than {longest}")
        stored = self.group.bytes.stop - self.group.bytes.start
        for name in ("spans", "student_spans"):
            if name in table.column_names:
                spans = one_array(table[name]).flatten()
                start, stop = (spans.field(n).cast(pa.int64()) for n in ("start", "stop"))
                forward = pc.greater(stop, start)
                lengths = pc.subtract(stop.filter(forward), start.filter(forward))
                require_cells(pc.sum(lengths).as_py() or 0, SPARE_WIDTH, stored)


POSITION_COLUMNS = (
    *("topk_k", "topk_floor", "topk_ids", "topk_logprobs"),
    *("tail_logprob", "token_logprob", "sample_ids"),
)
"""Columns with at least one value per labeled position."""
SPARE_WIDTH = 8
"""What a position takes besides its ids, in cells."""
GAP = 8192
"""Bytes between two columns that are fetched with them: less than the time of a request."""


def _require_counts(footer: Footer, group: RowGroup) -> None:
    """Compare the index with the footer."""
    if group.index >= len(footer.row_groups):
        raise ValueError(f"the shard has {len(footer.row_groups)} row groups")
    found = footer.row_groups[group.index][0]
    if found != group.bytes.rows:
        raise ValueError(f"it has {found} rows, the index says {group.bytes.rows}")


def _chunk_ranges(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Return the bytes of columns; neighbors are joined."""
    wanted = sorted((chunk.start, chunk.stop) for chunk in chunks)
    joined: list[tuple[int, int]] = []
    for start, stop in wanted:
        if joined and start - joined[-1][1] <= GAP:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _require_no_nulls(values: pa.Array, name: str) -> None:
    """Refuse nulls inside lists; whole lists of optional columns may be null."""
    if values.null_count:
        raise ValueError(f"column {name} has nulls inside its lists")
    if isinstance(values, pa.ListArray):
        _require_no_nulls(values.values, name)


def _require_all_values(table: pa.Table, chunks: Sequence[Chunk]) -> None:
    """Compare the number of values with the footer.

    Checksums cover pages, but not the page headers, which state the number of values.
    """
    for chunk in chunks:
        found = sum(_values(array) for array in table[chunk.name].chunks)
        if found != chunk.values:
            raise ValueError(f"column {chunk.name} has {found} values, not {chunk.values}")


def _values(array: pa.Array) -> int:
    """Count values as Parquet does: an empty or null list counts as one."""
    if not pa.types.is_list(array.type):
        return len(array)
    empty = int((np.diff(list_offsets(array)) == 0).sum())
    return empty + _values(array.flatten())


@contextmanager
def as_damage_error(group: RowGroup, path: str) -> Iterator[None]:
    """Raise any error of reading a shard as a `LabelSetError` that names the shard."""
    try:
        yield
    except FileNotFoundError as error:
        if group.shard.startswith(f"{HIDDEN}/"):
            what = "the hidden states are missing"
            raise LabelSetError(what, path=path, hint=RESTORE) from error
        raise damaged("the shard is missing", path) from error
    except (ValueError, OSError, pa.ArrowException, MemoryError) as error:
        cannot = " (or it cannot be read)" if is_url(path) else ""
        raise damaged(f"row group {group.index} was altered{cannot}: {error}", path) from error


def _read_verified(file: pa.NativeFile, byte_range: ByteRange, what: str, path: str) -> pa.Buffer:
    file.seek(byte_range.start)
    data = file.read_buffer(byte_range.stop - byte_range.start)
    _require_hash(data, byte_range, what, path)
    return data


def _require_hash(
    data: pa.Buffer | bytes | memoryview, byte_range: ByteRange, what: str, path: str
) -> None:
    if sha256_bytes(memoryview(data)) != byte_range.sha256:
        start, stop = byte_range.start, byte_range.stop
        raise damaged(f"{what} was altered (bytes {start} to {stop})", path)


def damaged(what: str, path: str) -> LabelSetError:
    """Return an error about a shard, with the way to restore it."""
    if is_url(path):
        hint = "upload the label set again; `labeler verify` checks the original"
    else:
        hint = (
            "`labeler repair` sets the shard aside; the same `labeler label` command then labels "
            "its unit again, and nothing else"
        )
    return LabelSetError(what, path=path, hint=hint)
