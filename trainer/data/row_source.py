"""The row groups of the label sets of a run, and the rows in them that can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.file_names import is_state_column
from schemas.kept_positions import LABEL_WEIGHTS, parse_rule
from schemas.remote import FETCH_THREADS
from trainer.data.label_weights import with_equal_weights
from trainer.data.mixture import Part
from trainer.data.stored_states import Bases, as_half
from trainer.data.tempered import one_temperature
from trainer.data.vocab_map import VocabMap
from trainer.data.wait_for_store import wait_for_store
from trainer.data.window import SET_NUMBER, drop_unlabeled, require_layout


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Label sets, and the columns to read of them.

    Attributes:
        parts: the sets.
        columns: the columns of the rows that are trained on.
        vocab_map: from the teacher's ids to the student's, where they differ.
        temperatures: of each set, the place of the temperature whose tails are read.
        bases: of each set, those of the layers whose codes `read` makes float16; see
            `trainer.data.stored_states`.
    """

    parts: tuple[Part, ...]
    columns: tuple[str, ...]
    vocab_map: VocabMap | None = None
    temperatures: tuple[int, ...] = ()
    bases: tuple[Bases, ...] = ()

    @property
    def numbered(self) -> bool:
        """Return whether `read` adds the column `SET_NUMBER`, which tells whose states they are."""
        return len(self.parts) > 1 and any(is_state_column(name) for name in self.columns)

    @property
    def vocab_size(self) -> int:
        """Number of the teacher's ids; all parts of a mixture share a tokenizer."""
        return self.parts[0].labels.manifest.identity.vocab_size

    @property
    def temperature(self) -> float | None:
        """Temperature whose tails are read; None where none are."""
        for part, place in zip(self.parts, self.temperatures):
            return (part.labels.manifest.identity.label_temperatures or ())[place]
        return None

    @property
    def largest_weight(self) -> float:
        """Largest weight of a label that the rules of the sets allow."""
        identities = (part.labels.manifest.identity for part in self.parts)
        rules = (parse_rule(each.keep_positions) for each in identities if each.keep_positions)
        return max((rule.largest_weight or 1.0 for rule in rules), default=1.0)

    def fetchers(self) -> ThreadPoolExecutor:
        """Return threads that read row groups: many where they wait for a network, else one."""
        remote = any(part.labels.remote for part in self.parts)
        return ThreadPoolExecutor(FETCH_THREADS if remote else 1, "row-groups")

    def stored_bytes(self, groups: NDArray[np.int64]) -> list[int]:
        """Return the bytes of row groups, each given as (part, row group) [n, 2]."""
        ranges = (self.parts[part].labels.row_groups[group].bytes for part, group in groups)
        return [place.stop - place.start for place in ranges]

    def surely_has_rows(self, groups: Iterable[NDArray[np.int64]]) -> bool:
        """Return whether a row of some row groups can be trained on, as far as the index says."""
        return self.vocab_map is None and any(
            self.parts[part].labels.row_groups[group].labels for part, group in groups
        )

    def read(self, group: NDArray[np.int64]) -> pa.Table:
        """Read the trainable rows of a row group: with labels, and known to the student.

        Args:
            group: (part, row group).

        Raises:
            LabelSetError: the row group is missing or damaged, or the store does not answer.
        """
        table = self._read(group, self.columns, verify=True)
        if self.temperatures:
            table = one_temperature(table, self.temperatures[group[0]])
        if self.bases:
            table = as_half(table, self.bases[group[0]])
        if self.numbered:
            table = table.append_column(SET_NUMBER, pa.repeat(int(group[0]), table.num_rows))
        return table

    def peek(self, group: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Return other columns of the rows of `read`, unverified."""
        return self._read(group, columns, verify=False)

    def _read(self, place: NDArray[np.int64], columns: Sequence[str], *, verify: bool) -> pa.Table:
        if self.vocab_map is not None:
            columns = list(dict.fromkeys([*columns, "input_ids", "student_input_ids"]))
        labels = self.parts[place[0]].labels
        group = labels.row_groups[place[1]]
        has_weights = labels.manifest.identity.has_weights
        stored = [name for name in columns if has_weights or name != LABEL_WEIGHTS]
        wanted = partial(labels.read_row_group, group, stored, verify=verify)
        table = wait_for_store(wanted) if labels.remote else wanted()
        if len(stored) < len(columns):
            table = with_equal_weights(table).select(list(columns))  # as the other sets have them
        if verify:
            require_layout(table, self.vocab_size)
        table = drop_unlabeled(table)
        return table if self.vocab_map is None else self.vocab_map.keep_known_rows(table)
