"""Stream a label set as packs: verified, decoded and packed one window ahead of the trainer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from schemas.arrow import KEY_COLUMNS
from schemas.codec import DRAW_COLUMNS
from schemas.index import read_lengths
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.row_lengths import LENGTH_COLUMNS, count_lengths
from schemas.state_codec import far_column
from schemas.tempered_tails import TEMPERED_TAILS
from trainer.data.load_windows import LoadedWindow, Packing, WindowLoader
from trainer.data.mixture import Part
from trainer.data.row_source import RowSource
from trainer.data.share_window import share_lists
from trainer.data.stored_states import bases_to_decode, require_states
from trainer.data.tempered import require_temperature
from trainer.data.vocab_map import VocabMap
from trainer.data.window import ROW_COLUMNS, Window, row_names

if TYPE_CHECKING:
    from trainer.data.exchange import Exchange

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
class PackSize:
    """The size of a pack, whose rows may be with another process. Its state is right after it."""

    n_tokens: int
    n_labels: int
    state: ReaderState


@dataclass(frozen=True, kw_only=True)
class Pack(PackSize):
    """Rows that are trained on as one sequence or batch."""

    window: Window
    rows: NDArray[np.int64]

    @property
    def keys(self) -> list[str]:
        """Names of the rows."""
        return [self.window.keys[row] for row in self.rows]

    @property
    def documents(self) -> list[str]:
        """Ids of the rows' records."""
        return [self.window.documents[row] for row in self.rows]


def own_packs(packs: Sequence[PackSize], rank: int, world: int) -> list[tuple[Pack, float]]:
    """Return the packs of a step that a process runs, each with a weight: as many on each process.

    A process that has fewer of its own runs the last pack of all again, with a weight of 0.

    Args:
        packs: of a step, by all processes; only the last step may hold fewer than the others.
        rank: number of the process.
        world: number of processes.
    """
    chosen = [(pack, 1.0) for pack in packs[rank::world]]
    chosen += [(packs[-1], 0.0)] * (-(-len(packs) // world) - len(chosen))
    return [(pack, weight) for pack, weight in chosen if isinstance(pack, Pack)]


@dataclass(frozen=True, kw_only=True)
class PackCount:
    """Packs and tokens of all epochs, how full the packs are, from 0 to 1, and the longest row."""

    packs: int
    tokens: int
    fill: float
    longest: int


class LabelDataset:
    """An iterable over the packs of a label set, resumable at any pack.

    All ranks walk one global sequence of packs and rank r of w takes packs r, r + w, r + 2w, ...,
    so the sequence is the same at any world size. With an `exchange` they divide the work of
    reading it; else each rank reads every window.

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
        exchange: these processes, as `trainer.data.exchange.open_exchange` returns them, in place
            of the two numbers. All of them must then iterate, and count, in step.
        state: where to start; its seed must be `seed`. By default at the beginning.
        vocab_map: from the teacher's ids to the student's, where they differ.
        drawn: also read the ids that were drawn from the teacher.
        meta: also read the rows' other columns.
        states: also read the hidden states of these layers, as stored.
        temperature: also read the tails at this temperature, unless it is 1.

    Raises:
        LabelSetError: the set cannot be opened, holds no labels, or lacks drawn ids or states.
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
        exchange: Exchange | None = None,
        state: ReaderState | None = None,
        vocab_map: VocabMap | None = None,
        drawn: bool = False,
        meta: bool = False,
        states: tuple[str, ...] = (),
        temperature: float = 1.0,
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
        sets = tuple(part.labels for part in self.parts)
        if states:
            require_states(sets, states)
        if exchange is not None:
            rank, world_size = exchange.rank, exchange.world
        if pack_tokens < 2 or window < 1 or not 0 <= rank < world_size:
            raise ValueError("need pack_tokens >= 2, window >= 1 and 0 <= rank < world_size")
        self.state = state or ReaderState(seed=seed)
        if self.state.seed != seed:
            raise ValueError(f"the state belongs to seed {self.state.seed}, not {seed}")
        self.rank, self.world_size, self.exchange = rank, world_size, exchange
        columns = (
            *(*ROW_COLUMNS, *(DRAW_COLUMNS if drawn else ())),
            *((TEMPERED_TAILS,) if temperature != 1 else ()),
            *((LABEL_WEIGHTS,) if any(s.manifest.identity.has_weights for s in sets) else ()),
            *(column for layer in states for column in (layer, far_column(layer))),
            *(("meta",) if meta else ()),
        )
        self.source = RowSource(
            parts=self.parts,
            columns=columns,
            vocab_map=vocab_map,
            temperatures=()
            if temperature == 1
            else tuple(require_temperature(each, temperature) for each in sets),
            bases=bases_to_decode(sets, states) if states else (),
        )
        self.loader = WindowLoader(
            source=self.source,
            packing=Packing(budget=pack_tokens, padded=padded, seed=seed),
            size=window,
            epochs=epochs,
            exchange=exchange,
        )

    def __iter__(self) -> Generator[Pack]:
        """Yield this rank's packs from `self.state` on, and keep `self.state` up to date."""
        for number, pack in enumerate(self.all_packs()):
            if number % self.world_size == self.rank and isinstance(pack, Pack):
                others = self.world_size - 1 - self.rank  # of this round
                self.state = replace(pack.state, pack=pack.state.pack + others)
                yield replace(pack, state=self.state)

    def all_packs(self) -> Generator[PackSize]:
        """Yield the packs of all ranks from `self.state` on; those with rows here are `Pack`.

        With an `exchange`, these are the packs of this rank, and the very last one.
        """
        windows = self.loader.load(self.state.epoch, self.state.window, self.state.pack)
        pool = ThreadPoolExecutor(1, thread_name_prefix="label-reader")
        try:
            ahead = pool.submit(next, windows, None)
            while (loaded := ahead.result()) is not None:  # raises the reader's error as it is
                ahead = pool.submit(next, windows, None)
                for index in range(loaded.first, len(loaded.packs)):
                    self.state = replace(
                        self.state, epoch=loaded.epoch, window=loaded.window, pack=index + 1
                    )
                    yield _pack(loaded, index, self.state)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            windows.close()

    def count(self) -> PackCount:
        """Count the packs of all epochs, from the lengths of rows in the index where it has them.

        Otherwise this reads the columns of lengths from the shards, and no labels.
        """
        loader = self.loader
        if loader.epochs is None:
            raise ValueError("the packs of an endless dataset cannot be counted: pass epochs")
        lengths = [self._row_lengths(part) for part in range(len(self.parts))]
        packs = tokens = 0
        for epoch in range(loader.epochs):
            for window, groups in enumerate(loader.windows(epoch)):
                rows = np.concatenate([lengths[part][group] for part, group in groups.tolist()])
                cut = loader.packing.pack(rows, epoch, window, partial(self._row_name, groups))
                packs, tokens = packs + len(cut), tokens + int(rows.sum())
        return PackCount(
            packs=packs,
            tokens=tokens,
            fill=tokens / max(1, packs * loader.packing.budget),
            longest=max((int(rows.max(initial=0)) for part in lengths for rows in part), default=0),
        )

    def _row_lengths(self, part: int) -> list[NDArray[np.int64]]:
        """Return the lengths of the trainable rows of each row group of a part.

        They are in the index. Shards are read where an older version wrote the set, or where ids
        decide what the student can learn from.
        """
        groups = self.parts[part].labels.row_groups
        stated = read_lengths(groups) if self.source.vocab_map is None else None
        found = [None if stated is None else stated.of(group) for group in range(len(groups))]
        missing = [group for group, rows in enumerate(found) if rows is None]
        peeked = dict(zip(missing, self._peek_lengths(part, missing), strict=True))
        lengths = (peeked[n] if rows is None else rows for n, rows in enumerate(found))
        return [rows[rows > 0].astype(np.int64) for rows in lengths]

    def _peek_lengths(self, part: int, groups: list[int]) -> list[NDArray[np.int32]]:
        """Return the lengths of the labeled rows of row groups, unverified until they are read."""

        def find(group: int) -> NDArray[np.int32]:
            return count_lengths(self.source.peek(np.array([part, group]), LENGTH_COLUMNS))

        def read(chosen: list[int]) -> list[NDArray[np.int32]]:
            with self.source.fetchers() as pool:
                return list(pool.map(find, chosen))

        if self.exchange is None or not groups:
            return read(groups)
        return share_lists(self.exchange, groups, read)

    def _row_name(self, groups: NDArray[np.int64], row: int) -> str:
        columns = (*KEY_COLUMNS, "n_labels")
        names = (name for g in groups for name in row_names(self.source.peek(g, columns)))
        return next(islice(names, row, None))


def _pack(loaded: LoadedWindow, index: int, state: ReaderState) -> PackSize:
    """Return a pack of a window, with its rows if they are here."""
    rows = loaded.packs[index]
    n_tokens, n_labels = int(loaded.tokens[rows].sum()), int(loaded.labels[rows].sum())
    places = loaded.places[rows]
    if loaded.data is None or (places < 0).any():
        return PackSize(n_tokens=n_tokens, n_labels=n_labels, state=state)
    return Pack(n_tokens=n_tokens, n_labels=n_labels, state=state, window=loaded.data, rows=places)
