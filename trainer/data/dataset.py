"""Stream a label set as packs: verified, decoded and packed one window ahead of the trainer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from schemas.arrow import KEY_COLUMNS
from schemas.codec import DRAW_COLUMNS
from schemas.remote import FETCH_THREADS
from trainer.data.mixture import Part, epoch_order
from trainer.data.order import cut_windows
from trainer.data.packing import pack_window
from trainer.data.vocab_map import VocabMap
from trainer.data.window import (
    LENGTH_COLUMNS,
    ROW_COLUMNS,
    Window,
    decode_window,
    labeled,
    row_names,
)

pc: Any = pyarrow.compute  # its functions are made when it is imported: mypy sees none of them

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReaderState:
    """A place in the endless sequence of packs; all that a resumed reader needs to know.

    `pack` counts packs of the window, whatever the world size. It may point past the window's end:
    the surplus is then counted on in the next window.
    """

    version: int = STATE_VERSION
    seed: int = 0
    epoch: int = 0
    window: int = 0
    pack: int = 0

    def to_dict(self) -> dict[str, int]:
        """As JSON-able numbers."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, int]) -> ReaderState:
        """The inverse of `to_dict`.

        Raises:
            SoftshardsError: another version of softshards wrote it.
        """
        if content.get("version") != STATE_VERSION:
            raise SoftshardsError(
                f"reader state version {content.get('version')}, this softshards reads "
                f"{STATE_VERSION}",
                hint="resume with the softshards that wrote the checkpoint",
            )
        return ReaderState(**content)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows that are trained on as one sequence. `state` is where to go on after it."""

    window: Window
    rows: NDArray[np.int64]
    state: ReaderState

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        offsets = self.window.token_offsets
        return int((offsets[self.rows + 1] - offsets[self.rows]).sum())

    @property
    def n_labels(self) -> int:
        """Labeled positions of all rows."""
        offsets = self.window.label_offsets
        return int((offsets[self.rows + 1] - offsets[self.rows]).sum())

    @property
    def keys(self) -> list[str]:
        """Names of the rows."""
        return [self.window.keys[row] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class PackCount:
    """What `epochs` passes over a label set come to."""

    packs: int
    tokens: int
    fill: float


class LabelDataset:
    """An iterable over the packs of a label set, resumable at any pack.

    All ranks walk one global sequence of packs and rank r of w takes packs r, r + w, r + 2w, ...,
    so the sequence is the same at any world size. Each rank reads every window.

    Args:
        labels: an opened label set, or folder, view or URL of a complete one, or a mixture of
            several (`trainer.data.mixture.open_mixture`).
        pack_tokens: most tokens in a pack; no row may be longer.
        seed: what the order depends on, with the epoch.
        window: row groups that are shuffled together and held in memory (twice: one window ahead).
        epochs: passes over the set; None never ends.
        rank, world_size: which packs of the global sequence to yield.
        state: where to start; its seed must be `seed`. By default at the beginning.
        vocab_map: from the teacher's ids to the student's, where they differ.
        drawn: also read the ids that were drawn from the teacher.

    Raises:
        LabelSetError: the set cannot be opened, holds no label, or none of the drawn ids asked for.
    """

    def __init__(
        self,
        labels: LabelSet | Path | str | tuple[Part, ...],
        *,
        pack_tokens: int,
        seed: int = 0,
        window: int = 8,
        epochs: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        state: ReaderState | None = None,
        vocab_map: VocabMap | None = None,
        drawn: bool = False,
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
        self.columns = (*ROW_COLUMNS, *DRAW_COLUMNS) if drawn else ROW_COLUMNS
        if pack_tokens < 2 or window < 1 or not 0 <= rank < world_size:
            raise ValueError("need pack_tokens >= 2, window >= 1 and 0 <= rank < world_size")
        self.state = state or ReaderState(seed=seed)
        if self.state.seed != seed:
            raise ValueError(f"the state belongs to seed {self.state.seed}, not {seed}")
        self.pack_tokens, self.seed, self.window, self.epochs = pack_tokens, seed, window, epochs
        self.rank, self.world_size, self.vocab_map = rank, world_size, vocab_map

    def __iter__(self) -> Generator[Pack]:
        """Yield this rank's packs from `self.state` on, and keep `self.state` up to date."""
        epoch, window, at = self.state.epoch, self.state.window, self.state.pack + self.rank
        place: tuple[int, int] | None = (epoch, window)
        if self.epochs is not None and epoch >= self.epochs:
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="label-reader")
        try:
            ahead: Future[tuple[Window, list[NDArray[np.int64]]]] = pool.submit(
                self._load, epoch, window
            )
            while place is not None:
                epoch, window = place
                data, packs = ahead.result()  # the reader's error is raised here, as it is
                place = self._after(epoch, window)
                if place is not None:
                    ahead = pool.submit(self._load, *place)
                for index in range(at, len(packs), self.world_size):
                    at = index + self.world_size
                    self.state = ReaderState(
                        seed=self.seed, epoch=epoch, window=window, pack=at - self.rank
                    )
                    yield Pack(window=data, rows=packs[index], state=self.state)
                at -= len(packs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def count(self) -> PackCount:
        """Count the packs of all epochs; reads the set's length columns, and no labels."""
        if self.epochs is None:
            raise ValueError("without a number of epochs there is no end to count to")
        places = [
            (part, group)
            for part in range(len(self.parts))
            for group in range(len(self.parts[part].labels.row_groups))
        ]
        with self._fetchers() as pool:
            lengths = dict(zip(places, pool.map(lambda place: self._lengths(*place), places)))
        packs = tokens = 0
        for epoch in range(self.epochs):
            for window, groups in enumerate(self._windows(epoch)):
                rows = np.concatenate([lengths[int(part), int(group)] for part, group in groups])
                cut = self._pack(rows, epoch, window, lambda row, g=groups: self._name(g, row))
                packs, tokens = packs + len(cut), tokens + int(rows.sum())
        return PackCount(packs=packs, tokens=tokens, fill=tokens / max(1, packs * self.pack_tokens))

    def _windows(self, epoch: int) -> list[NDArray[np.int64]]:
        """(part, row group) [up to `window`, 2] of each window of an epoch."""
        return cut_windows(epoch_order(self.parts, self.seed, epoch), self.window)

    def _after(self, epoch: int, window: int) -> tuple[int, int] | None:
        if window + 1 < len(self._windows(epoch)):
            return epoch, window + 1
        return None if self.epochs is not None and epoch + 1 >= self.epochs else (epoch + 1, 0)

    def _load(self, epoch: int, window: int) -> tuple[Window, list[NDArray[np.int64]]]:
        groups = self._windows(epoch)[window]
        data = decode_window(self._rows(groups, self.columns, verify=True), self.vocab_map)
        lengths = np.diff(data.token_offsets)
        return data, self._pack(lengths, epoch, window, lambda row: data.keys[row])

    def _pack(
        self, lengths: NDArray[np.int64], epoch: int, window: int, row_name: Any
    ) -> list[NDArray[np.int64]]:
        return pack_window(
            lengths,
            self.pack_tokens,
            seed=self.seed,
            epoch=epoch,
            window=window,
            row_name=row_name,
        )

    def _lengths(self, part: int, group: int) -> NDArray[np.int64]:
        """Lengths of a row group's labeled rows; what they are is verified when they are read."""
        table = self._rows(np.array([[part, group]]), LENGTH_COLUMNS, verify=False)
        student = pc.list_value_length(table["student_input_ids"]).cast(pa.int32())
        return pc.coalesce(student, table["n_tokens"]).to_numpy().astype(np.int64)

    def _fetchers(self) -> ThreadPoolExecutor:
        """Threads that read row groups: many where they wait for a network, else one."""
        remote = any(part.labels.remote for part in self.parts)
        return ThreadPoolExecutor(FETCH_THREADS if remote else 1)

    def _name(self, groups: NDArray[np.int64], row: int) -> str:
        return row_names(self._rows(groups, (*KEY_COLUMNS, "n_labels"), verify=False))[row]

    def _rows(self, groups: NDArray[np.int64], columns: Sequence[str], *, verify: bool) -> pa.Table:
        """The rows to train on of some row groups: those with labels that the student can read."""
        if self.vocab_map is not None:
            columns = list(dict.fromkeys([*columns, "input_ids", "student_input_ids"]))

        def read(place: NDArray[np.int64]) -> pa.Table:
            labels = self.parts[place[0]].labels
            return labels.read_row_group(labels.row_groups[place[1]], list(columns), verify=verify)

        with self._fetchers() as pool:
            table = labeled(pa.concat_tables(pool.map(read, groups)))
        return table if self.vocab_map is None else self.vocab_map.keep(table)
