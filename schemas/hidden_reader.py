"""Hidden states read beside the labels of the same rows, verified as labels are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy
from schemas.errors import LabelSetError, first_line
from schemas.file_names import hidden_beside, is_state_column
from schemas.fingerprint import sha256_json
from schemas.hidden_part import HIDDEN_KEYS, check_hidden_footer, hidden_schema, state_columns
from schemas.index import index_entries, read_index
from schemas.journal import read_entries
from schemas.remote import Remote
from schemas.row_group import RowGroup
from schemas.row_groups import RowGroups
from schemas.shard_reader import OpenGroup, ShardReader, Verify, damaged
from schemas.state_codec import label_offsets


def content_digest(groups: RowGroups, hidden: Sequence[RowGroup]) -> str:
    """Return the digest of labels, or of labels and hidden states."""
    if not hidden:
        return groups.digest
    return sha256_json([groups.digest, [group.bytes.sha256 for group in hidden]])


def copy_named(remote: Remote, names: Iterable[str], folder: Path) -> None:
    """Copy files of a set behind a URL beside its other metadata, unless they are there.

    A file that the store does not have stays missing.
    """
    for name in names:
        if not (folder / name).exists():
            with suppress(FileNotFoundError):
                remote.copy(name, folder / name)


NO_STATES = "label the rows again with `labeler label --states`"


@dataclass(frozen=True)
class HiddenReader(ShardReader):
    """Opens hidden parts of a set, and joins their columns to those of the shard."""

    @cached_property
    def groups(self) -> RowGroups:
        """All row groups of the set's hidden states, by unit; read when first asked for.

        Raises:
            LabelSetError: the index of hidden states is missing or altered.
        """
        manifest = self.manifest
        if manifest.status != "complete":
            entries = read_entries(self.folder, manifest.planned_units)
            return index_entries(entries, hidden=True)
        pages = manifest.hidden_pages or ()
        if self.remote is not None:
            copy_named(self.remote, [page.path for page in pages], self.folder)
        return read_index(self.folder, pages, hidden=True)

    @cached_property
    def _first(self) -> dict[str, int]:
        """Number of the first row group of each hidden part."""
        table, places = self.groups.table, self.groups.places
        firsts = np.flatnonzero(as_numpy(table["row_group"])[places] == 0)
        names = table["shard"].take(pa.array(places[firsts])).to_pylist()
        return dict(zip(names, firsts.tolist(), strict=True))

    def find(self, group: RowGroup) -> RowGroup:
        """Return the row group of hidden states that belongs to a row group of labels.

        Raises:
            LabelSetError: there is none, or it has other rows.
        """
        name = hidden_beside(group.shard)
        number = self._first.get(name, -1) + group.index
        if name not in self._first or number >= len(self.groups):
            raise damaged("the index has no hidden states of this shard", self.path(group.shard))
        found = self.groups[number]
        if (found.shard, found.index) != (name, group.index) or (
            (found.bytes.rows, found.bytes.labels) != (group.bytes.rows, group.bytes.labels)
        ):
            what = f"row group {group.index} does not have the rows of its shard"
            raise damaged(what, self.path(name))
        return replace(found, kept=group.kept)

    def of(self, groups: RowGroups) -> list[RowGroup]:
        """Return the hidden states of row groups; none where the set has none.

        Raises:
            LabelSetError: as `find`.
        """
        return [] if self.manifest.states is None else [self.find(group) for group in groups]

    @property
    def stored_bytes(self) -> int:
        """Size of all hidden parts; 0 where the set has no states."""
        return 0 if self.manifest.states is None else self.groups.stored_bytes

    def read_beside(
        self, shard: OpenGroup, columns: Sequence[str], rows: NDArray[np.bool_] | None
    ) -> pa.Table:
        """Read columns of labels and of states, in this order; see `OpenGroup.read`.

        Raises:
            LabelSetError: as `read_states`.
        """
        wanted = [name for name in columns if is_state_column(name)]
        labels = [name for name in columns if name not in wanted]
        left = shard.read(list(dict.fromkeys([*HIDDEN_KEYS, *labels])), rows)
        right = self.read_states(shard.group, wanted, left, verify=shard.verify, rows=rows)
        fields = [(right if n in wanted else left).schema.field(n) for n in columns]
        arrays = [(right if n in wanted else left)[n] for n in columns]
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields, left.schema.metadata))

    def read_states(
        self,
        group: RowGroup,
        columns: Sequence[str],
        labels: pa.Table,
        *,
        verify: Verify,
        rows: NDArray[np.bool_] | None = None,
    ) -> pa.Table:
        """Read columns of the hidden states that belong to rows of a shard.

        Args:
            group: the row group of labels.
            columns: columns of states.
            labels: the same rows of the shard, with the columns `HIDDEN_KEYS`.
            verify: the data to verify.
            rows: as for `OpenGroup.read`.

        Raises:
            LabelSetError: the set has no such states, their file is missing or altered, or it has
                other rows than the shard.
        """
        self._require_layers(columns)
        beside = self.find(group)
        with self.open(beside, verify) as hidden:
            read = hidden.read(list(dict.fromkeys([*HIDDEN_KEYS, *columns])), rows)
        try:
            for name in HIDDEN_KEYS:
                if not labels[name].equals(read[name]):
                    raise ValueError(f"its rows are not those of the shard: {name} differs")
            sizes = as_numpy(labels["n_labels"])
            for layer in (name for name in columns if name in self._layers):
                if not np.array_equal(np.diff(label_offsets(read, layer)), sizes):
                    raise ValueError(f"{layer} does not have one state per label")
        except ValueError as error:
            what = f"row group {beside.index}: {first_line(error)}"
            raise damaged(what, self.path(beside.shard)) from error
        assert self.manifest.states is not None, "else there are no layers"
        schema = hidden_schema(self.manifest.states)  # with the codecs, whatever the file says
        fields = [schema.field(name) for name in columns]
        return pa.Table.from_arrays([read[n] for n in columns], schema=pa.schema(fields))

    @property
    def _layers(self) -> tuple[str, ...]:
        return () if self.manifest.states is None else self.manifest.states.layers

    def _require_layers(self, wanted: Sequence[str]) -> None:
        """Refuse columns of layers that are not stored."""
        known = set(state_columns(self._layers))
        for name in wanted:
            if name not in known:
                has = f"it stores {', '.join(self._layers)}" if self._layers else "it has none"
                raise LabelSetError(
                    f"the label set has no hidden states {name!r}: {has}",
                    path=str(self.remote.url if self.remote else self.folder),
                    hint=NO_STATES,
                )

    def _check(self, metadata: pq.FileMetaData, path: str) -> None:
        check_hidden_footer(metadata, self.manifest, path)

    def _order(self, *_: object) -> None:
        """Return None: hidden parts have no order of ids."""
