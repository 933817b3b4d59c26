"""Stream a label set as packs: verified, decoded and packed one window ahead of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from schemas.arrow import KEY_COLUMNS
from schemas.codec import DRAW_COLUMNS
from schemas.index import read_lengths
from schemas.remote import FETCH_THREADS
from schemas.row_lengths import LENGTH_COLUMNS, count_lengths
from trainer.data.mixture import Part, epoch_order
from trainer.data.order import Windows
from trainer.data.packing import pack_window
from trainer.data.vocab_map import VocabMap
from trainer.data.wait_for_store import wait_for_store
from trainer.data.window import (
    ROW_COLUMNS,
    Window,
    decode_window,
    drop_unlabeled,
    require_layout,
    row_names,
)

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReaderState:
    """A place in the endless sequence of packs: all that a resumed reader needs.

    `pack` counts packs of the window, whatever the world size. It may point past the window's end:
    the surplus then continues in the next window.
    """

    version: int = STATE_VERSION
    seed: int = 0
    epoch: int = 0
    window: int = 0
    pack: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the state as JSON-able numbers."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, int]) -> ReaderState:
        """Return the state of a `to_dict`.

        Raises:
            SoftshardsError: a different version of softshards wrote it.
        """
        if content.get("version") != STATE_VERSION:
            raise SoftshardsError(
                f"the reader state has version {content.get('version')}; this version of "
                f"softshards reads {STATE_VERSION}",
                hint="resume with the version of softshards that wrote the checkpoint",
            )
        return ReaderState(**content)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows that are trained on as one sequence or batch. `state` is the place right after it."""

    window: Window
    rows: NDArray[np.int64]
    state: ReaderState

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all rows."""
        offsets = self.window.token_offsets
        return int((offsets[self.rows + 1] - offsets[self.rows]).sum())

    @property
    def n_labels(self) -> int:
        """Number of labeled positions of all rows."""
        offsets = self.window.label_offsets
        return int((offsets[self.rows + 1] - offsets[self.rows]).sum())

    @property
    def keys(self) -> list[str]:
        """Names of the rows."""
        return [self.window.keys[row] for row in self.rows]

    @property
    def documents(self) -> list[str]:
        """Ids of the rows' records."""
        return [self.window.documents[row] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class PackCount:
    """Packs and tokens of all epochs, how full the packs are, from 0 to 1, and the longest row."""

    packs: int
    tokens: int
    fill: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class _LoadedWindow:
    """A window, and the packs that are made of it."""

    epoch: int
    window: int
    data: Window
    packs: list[NDArray[np.int64]]


class LabelDataset:
    """An iterable over the packs of a label set, resumable at any pack.

    All ranks walk one global sequence of packs and rank r of w takes packs r, r + w, r + 2w, ...,
    so the sequence is the same at any world size. Each rank reads every window.

    Args:
        labels: an opened label set; the folder, view or URL of a complete one; or a mixture of
            several (`trainer.data.mixture.open_mixture`).
        pack_tokens: the maximum number of tokens in a pack; no row may be longer.
        padded: packs are batches of rows of similar length, and `pack_tokens` counts their padding.
        seed: decides the order, with the epoch.
        window: row groups that are shuffled together and held in memory (twice: one window ahead).
        epochs: passes over the set; None never ends.
        rank: number of this process among `world_size`, which share the global sequence of packs.
        world_size: number of processes.
        state: where to start; its seed must be `seed`. By default at the beginning.
        vocab_map: from the teacher's ids to the student's, where they differ.
        drawn: also read the ids that were drawn from the teacher.
        meta: also read the rows' other columns.

    Raises:
        LabelSetError: the set cannot be opened, holds no labels, or lacks drawn ids.
    """

    def __init__(
        self,
        labels: LabelSet | Path | str | tuple[Part, ...],
        *,
        pack_tokens: int,
        padded: bool = False,
        seed: int = 0,
        window: int = 8,
        epochs: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        state: ReaderState | None = None,
        vocab_map: VocabMap | None = None,
        drawn: bool = False,
        meta: bool = False,
    ) -> None:
        if isinstance(labels, Path | str):
            labels = open_label_set(labels)
        self.parts = (Part(labels=labels),) if isinstance(labels, LabelSet) else labels
        if self.parts[0].labels.labels == 0:
            raise LabelSetError("the label set holds no labels", path=self.parts[0].labels.place)
        for part in self.parts if drawn else ():
            if not part.labels.manifest.identity.draws:
                raise LabelSetError(
                    "the labels hold no drawn ids, and --loss sampled needs them",
                    path=part.labels.place,
                    hint="label with `labeler label --draws 50`, or choose another --loss",
                )
        self.columns = (
            *ROW_COLUMNS,
            *(DRAW_COLUMNS if drawn else ()),
            *(("meta",) if meta else ()),
        )
        if pack_tokens < 2 or window < 1 or not 0 <= rank < world_size:
            raise ValueError("need pack_tokens >= 2, window >= 1 and 0 <= rank < world_size")
        self.state = state or ReaderState(seed=seed)
        if self.state.seed != seed:
            raise ValueError(f"the state belongs to seed {self.state.seed}, not {seed}")
        self.pack_tokens, self.seed, self.window, self.epochs = pack_tokens, seed, window, epochs
        self.rank, self.world_size, self.vocab_map = rank, world_size, vocab_map
        self.padded = padded

    def __iter__(self) -> Generator[Pack]:
        """Yield this rank's packs from `self.state` on, and keep `self.state` up to date."""
        at = self.state.pack + self.rank
        windows = self._load_windows(self.state.epoch, self.state.window)
        pool = ThreadPoolExecutor(1, thread_name_prefix="label-reader")
        try:
            ahead = pool.submit(next, windows, None)
            while (loaded := ahead.result()) is not None:  # raises the reader's error as it is
                ahead = pool.submit(next, windows, None)
                for index in range(at, len(loaded.packs), self.world_size):
                    at = index + self.world_size
                    self.state = ReaderState(
                        seed=self.seed,
                        epoch=loaded.epoch,
                        window=loaded.window,
                        pack=at - self.rank,
                    )
                    yield Pack(window=loaded.data, rows=loaded.packs[index], state=self.state)
                at -= len(loaded.packs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def count(self) -> PackCount:
        """Count the packs of all epochs, from the lengths of rows in the index where it has them.

        Otherwise this reads the columns of lengths from the shards, and no labels.
        """
        if self.epochs is None:
            raise ValueError("the packs of an endless dataset cannot be counted: pass epochs")
        lengths = [self._row_lengths(part) for part in range(len(self.parts))]
        packs = tokens = 0
        for epoch in range(self.epochs):
            for window, groups in enumerate(self._windows(epoch)):
                rows = np.concatenate([lengths[part][group] for part, group in groups.tolist()])
                cut = self._pack(rows, epoch, window, partial(self._row_name, groups))
                packs, tokens = packs + len(cut), tokens + int(rows.sum())
        return PackCount(
            packs=packs,
            tokens=tokens,
            fill=tokens / max(1, packs * self.pack_tokens),
            longest=max((int(rows.max(initial=0)) for part in lengths for rows in part), default=0),
        )

    def _row_lengths(self, part: int) -> list[NDArray[np.int64]]:
        """Return the lengths of the trainable rows of each row group of a part.

        They are in the index. Shards are read where an older version wrote the set, or where ids
        decide what the student can learn from.
        """
        groups = self.parts[part].labels.row_groups
        stated = read_lengths(groups) if self.vocab_map is None else None

        def find(group: int) -> NDArray[np.int64]:
            rows = None if stated is None else stated.of(group)
            return self._lengths(part, group) if rows is None else rows[rows > 0].astype(np.int64)

        with self._fetchers() as pool:
            return list(pool.map(find, range(len(groups))))

    def _windows(self, epoch: int) -> Windows:
        """Return (part, row group) [up to `window`, 2] of each window of an epoch.

        This orders all row groups of the set: call it once per epoch.
        """
        return Windows(epoch_order(self.parts, self.seed, epoch), self.window)

    def _load_windows(self, epoch: int, window: int) -> Iterator[_LoadedWindow]:
        """Yield the windows of all epochs, from a place on."""
        while self.epochs is None or epoch < self.epochs:
            windows = self._windows(epoch)
            for number in range(window, len(windows)):
                yield self._load(epoch, number, windows[number])
            epoch, window = epoch + 1, 0

    def _load(self, epoch: int, window: int, groups: NDArray[np.int64]) -> _LoadedWindow:
        table = self._rows(groups, self.columns, verify=True)
        data = decode_window(table, vocab_size=self._vocab_size, vocab_map=self.vocab_map)
        lengths = np.diff(data.token_offsets)
        packs = self._pack(lengths, epoch, window, data.keys.__getitem__)
        return _LoadedWindow(epoch=epoch, window=window, data=data, packs=packs)

    def _pack(
        self, lengths: NDArray[np.int64], epoch: int, window: int, row_name: Callable[[int], str]
    ) -> list[NDArray[np.int64]]:
        return pack_window(
            lengths,
            self.pack_tokens,
            seed=self.seed,
            epoch=epoch,
            window=window,
            padded=self.padded,
            row_name=row_name,
        )

    def _lengths(self, part: int, group: int) -> NDArray[np.int64]:
        """Return the lengths of a row group's labeled rows, unverified until they are read."""
        table = self._rows(np.array([[part, group]]), LENGTH_COLUMNS, verify=False)
        return count_lengths(table).astype(np.int64)

    @property
    def _vocab_size(self) -> int:
        """Number of the teacher's ids; all parts of a mixture share a tokenizer."""
        return self.parts[0].labels.manifest.identity.vocab_size

    def _fetchers(self) -> ThreadPoolExecutor:
        """Return threads that read row groups: many where they wait for a network, else one."""
        remote = any(part.labels.remote for part in self.parts)
        return ThreadPoolExecutor(FETCH_THREADS if remote else 1)

    def _row_name(self, groups: NDArray[np.int64], row: int) -> str:
        return row_names(self._rows(groups, (*KEY_COLUMNS, "n_labels"), verify=False))[row]

    def _rows(self, groups: NDArray[np.int64], columns: Sequence[str], *, verify: bool) -> pa.Table:
        """Return the trainable rows of some row groups: with labels, and known to the student."""
        if self.vocab_map is not None:
            columns = list(dict.fromkeys([*columns, "input_ids", "student_input_ids"]))

        def read(place: NDArray[np.int64]) -> pa.Table:
            labels = self.parts[place[0]].labels
            group = labels.row_groups[place[1]]
            wanted = partial(labels.read_row_group, group, list(columns), verify=verify)
            table = wait_for_store(wanted) if labels.remote else wanted()
            if verify:
                require_layout(table, self._vocab_size)
            return table

        with self._fetchers() as pool:
            table = drop_unlabeled(pa.concat_tables(pool.map(read, groups)))
        return table if self.vocab_map is None else self.vocab_map.keep_known_rows(table)
