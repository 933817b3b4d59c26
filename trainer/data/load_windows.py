"""Windows in order, read ahead, decoded and packed; several processes divide the work.

Each process reads some row groups of a window, tells the others how long their rows are, and sends
each row to the process that trains on it. So a process reads, verifies and decodes its share alone,
and the packs are those of one process, in the same order (docs/decisions/0014-shared-windows.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy
from trainer.data.mixture import epoch_order
from trainer.data.order import Windows
from trainer.data.packing import pack_window, require_fit
from trainer.data.row_source import RowSource
from trainer.data.share_window import (
    OwnRows,
    SharedRows,
    divide_reading,
    join_rows,
    own_rows,
    row_messages,
    shared_rows,
)
from trainer.data.table_bytes import to_bytes
from trainer.data.window import Window, decode_window, row_names

if TYPE_CHECKING:
    from trainer.data.exchange import Exchange  # imports torch, which counting packs does not need


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How rows become packs; see `LabelDataset`."""

    budget: int
    padded: bool
    seed: int

    def pack(
        self,
        lengths: NDArray[np.int64],
        epoch: int,
        window: int,
        row_name: Callable[[int], str] = str,
    ) -> list[NDArray[np.int64]]:
        """Return the rows of each pack of a window, given the lengths of its rows."""
        return pack_window(
            lengths,
            self.budget,
            seed=self.seed,
            epoch=epoch,
            window=window,
            padded=self.padded,
            row_name=row_name,
        )


@dataclass(frozen=True, kw_only=True)
class LoadedWindow:
    """A window: its packs, and the rows that this process trains on.

    Attributes:
        epoch, window: its place.
        packs: int64, the rows of each pack, numbered in the order of the window's row groups.
        first: the first pack to train on; those before it are skipped.
        tokens: int64 [rows]. labels: likewise.
        data: the decoded rows; None if this process trains on none.
        places: int64 [rows], the number of each row in `data`, -1 for rows that are not there.
    """

    epoch: int
    window: int
    packs: list[NDArray[np.int64]]
    first: int
    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    data: Window | None
    places: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A window that is being read.

    Attributes:
        epoch, window: its place.
        own: numbers of the row groups, within the window, that this process reads.
        tables: their rows.
        may_be_last: whether it is not certain that packs follow it.
    """

    epoch: int
    window: int
    own: list[int]
    tables: list[Future[pa.Table]]
    may_be_last: bool


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A shared window, its packs from `first` on, and the rows that each process needs."""

    rows: SharedRows
    packs: list[NDArray[np.int64]]
    first: int
    wanted: list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class WindowLoader:
    """Loads windows, read ahead.

    Attributes:
        source: the rows.
        packing: how they are packed.
        size: row groups per window.
        epochs: passes over the set; None never ends.
        exchange: the processes that share the windows; None reads them whole.
    """

    source: RowSource
    packing: Packing
    size: int
    epochs: int | None
    exchange: Exchange | None

    def windows(self, epoch: int) -> Windows:
        """Return (part, row group) [up to `size`, 2] of each window of an epoch.

        This orders all row groups of the set: call it once per epoch.
        """
        return Windows(epoch_order(self.source.parts, self.packing.seed, epoch), self.size)

    def load(self, epoch: int, window: int, skip: int) -> Generator[LoadedWindow]:
        """Yield the windows of all epochs from a place on; all processes must do so in step.

        The first pack after those that are skipped is for rank 0, the next for rank 1, and so on.

        Args:
            epoch: of the first window.
            window: its number.
            skip: number of packs to skip in this window and, if it has fewer, in those after it.

        Raises:
            SoftshardsError: rows cannot be read, are damaged or too long. All processes raise it.
        """
        world = 1 if self.exchange is None else self.exchange.world
        pool = self.source.fetchers()
        plan = self._plan(epoch, window, pool)
        ahead: deque[_Planned] = deque()
        given = 0
        try:
            while True:
                # A process reads ahead its shares of so many windows, about one window in all.
                ahead.extend(islice(plan, world - len(ahead)))
                if not ahead:
                    return
                planned = ahead.popleft()
                if self.exchange is None:
                    loaded = self._load_whole(planned, skip)
                else:
                    loaded = self._load_share(planned, skip, given)
                skip -= loaded.first
                given += len(loaded.packs) - loaded.first
                yield loaded
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _plan(self, epoch: int, window: int, pool: ThreadPoolExecutor) -> Iterator[_Planned]:
        """Start to read windows, one at a time."""
        rank, world = (self.exchange.rank, self.exchange.world) if self.exchange else (0, 1)
        bytes_read = np.zeros(world, np.int64)
        while self.epochs is None or epoch < self.epochs:
            windows = self.windows(epoch)
            for number in range(window, len(windows)):
                groups = windows[number]
                readers = divide_reading(self.source.stored_bytes(groups), bytes_read)
                own = [j for j, reader in enumerate(readers) if reader == rank]
                following = windows[number + 1 : number + 2]
                yield _Planned(
                    epoch=epoch,
                    window=number,
                    own=own,
                    tables=[pool.submit(self.source.read, groups[j]) for j in own],
                    may_be_last=not any(map(self.source.surely_has_rows, following)),
                )
            epoch, window = epoch + 1, 0

    def _load_whole(self, planned: _Planned, skip: int) -> LoadedWindow:
        table = pa.concat_tables(future.result() for future in planned.tables)
        data = self._decode(table)
        tokens, labels = np.diff(data.token_offsets), np.diff(data.label_offsets)
        packs = self.packing.pack(
            tokens, planned.epoch, planned.window, row_name=data.keys.__getitem__
        )
        return LoadedWindow(
            epoch=planned.epoch,
            window=planned.window,
            packs=packs,
            first=min(skip, len(packs)),
            tokens=tokens,
            labels=labels,
            data=data,
            places=np.arange(len(tokens)),
        )

    def _load_share(self, planned: _Planned, skip: int, given: int) -> LoadedWindow:
        """Load the rows that this process trains on.

        All tell each other the sizes of the rows that they read, so all know all packs. Then each
        sends the others their rows, and last that it could decode its own.
        """
        exchange = self.exchange
        assert exchange is not None
        rank, world = exchange.rank, exchange.world
        own, told = exchange.together(
            lambda: self._read_own(planned), lambda own: [to_bytes(own.sizes)] * world
        )
        cut, found = exchange.together(
            lambda: self._cut(planned, shared_rows(told), skip, given),
            lambda cut: row_messages(own, cut.rows, cut.wanted, rank),
        )

        def decode() -> tuple[Window | None, NDArray[np.int64]]:
            table, places = join_rows(own, cut.rows, cut.wanted[rank], found, rank)
            return None if table is None else self._decode(table), places

        (data, places), _ = exchange.together(decode, lambda _: [b""] * world)
        return LoadedWindow(
            epoch=planned.epoch,
            window=planned.window,
            packs=cut.packs,
            first=cut.first,
            tokens=cut.rows.tokens,
            labels=cut.rows.labels,
            data=data,
            places=places,
        )

    def _read_own(self, planned: _Planned) -> OwnRows:
        tables = [future.result() for future in planned.tables]
        own = own_rows(planned.own, tables)
        lengths = as_numpy(own.sizes["tokens"]).astype(np.int64)
        require_fit(lengths, self.packing.budget, lambda row: row_names(own.table)[row])
        return own

    def _cut(self, planned: _Planned, rows: SharedRows, skip: int, given: int) -> _Cut:
        """Return the packs of a window, and the rows that each process needs for its own."""
        assert self.exchange is not None
        world = self.exchange.world
        packs = self.packing.pack(rows.tokens, planned.epoch, planned.window)
        first = min(skip, len(packs))
        wanted = []
        for rank in range(world):
            theirs = packs[first + (rank - given) % world :: world]
            if planned.may_be_last and packs:
                theirs = [*theirs, packs[-1]]  # for ranks without a pack in the last step
            wanted.append(np.unique(np.concatenate([*theirs, np.empty(0, np.int64)])))
        return _Cut(rows=rows, packs=packs, first=first, wanted=wanted)

    def _decode(self, table: pa.Table) -> Window:
        source = self.source
        from trainer.data.distributions import as_distributions  # imports torch, too

        window = decode_window(
            table,
            vocab_size=source.vocab_size,
            vocab_map=source.vocab_map,
            temperature=source.temperature,
            largest_weight=source.largest_weight,
        )
        return as_distributions(window)
