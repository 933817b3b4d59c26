"""Open a label set and read its row groups, verified. The trainer's only access to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import LabelSetError, first_line, naming
from schemas.file_names import HEAD_FILE, TOKENIZER, basis_name
from schemas.fingerprint import sha256_bytes, tokenizer_digest
from schemas.hidden_reader import HiddenReader, content_digest, copy_named
from schemas.index import index_entries, read_index
from schemas.journal import UnitEntry, read_entries, read_entry
from schemas.manifest import FileDigest, Manifest, StatesRecord, read_manifest
from schemas.redact import redacted
from schemas.remote import Remote, is_url
from schemas.remote_metadata import copy_entry, copy_journal, copy_metadata, copy_view
from schemas.row_group import RowGroup
from schemas.row_groups import RowGroups
from schemas.set_paths import set_file
from schemas.shard import identity_schema
from schemas.shard_reader import ShardReader
from schemas.state_codec import StateBasis
from schemas.stored_head import StoredHead, checked_file, read_basis, read_head
from schemas.view import VIEW_SUFFIX, View, read_view, view_target


class UnfinishedError(LabelSetError):
    """A label set is still being labeled."""


@dataclass(frozen=True)
class LabelSet:
    """An opened label set, as `open_label_set` returns it.

    Attributes:
        path: the set's folder; of a set behind a URL, a local copy of it without shards.
        manifest: its checked manifest.
        row_groups: all row groups, by unit; of a view, the row groups with rows left.
        view: the view that it was opened by, if any.
        remote: the location of its shards, if not `path`.
    """

    path: Path
    manifest: Manifest
    row_groups: RowGroups
    view: View | None = None
    remote: Remote | None = None

    @cached_property
    def reader(self) -> ShardReader:
        """The reader of its shards."""
        return ShardReader(self.path, self.manifest, self.remote, self.hidden)

    @cached_property
    def hidden(self) -> HiddenReader:
        """The reader of its hidden states, which need not exist."""
        return HiddenReader(self.path, self.manifest, self.remote)

    @property
    def states(self) -> StatesRecord | None:
        """The layers and codec of its hidden states; None where it has none."""
        return self.manifest.states

    @cached_property
    def head(self) -> StoredHead:
        """The teacher's output projection, checked and mapped.

        Raises:
            LabelSetError: the set has none, or it is missing, altered, or does not fit the set.
        """
        with naming(self.path, self.place):
            self._bring(HEAD_FILE)
            return read_head(self.path, self.manifest)

    @cached_property
    def _bases(self) -> dict[str, StateBasis | None]:
        return {}

    def basis(self, layer: str) -> StateBasis | None:
        """Return the basis of a layer's hidden states; None where they are stored without one.

        Raises:
            LabelSetError: it is missing, altered, or does not fit the set.
        """
        if layer not in self._bases:
            with naming(self.path, self.place):
                self._bring(basis_name(layer))
                self._bases[layer] = read_basis(self.path, self.manifest, layer)
        return self._bases[layer]

    def state_file(self, file: FileDigest) -> Path:
        """Return the path of a file of the hidden states, copied from a URL at need, and checked.

        Raises:
            LabelSetError: it is missing or altered.
        """
        with naming(self.path, self.place):
            self._bring(file.path)
            return checked_file(self.path, file)

    def _bring(self, name: str) -> None:
        """Copy a file of the hidden states, if the set is behind a URL and the copy lacks it."""
        if self.remote is not None and self.states is not None and self.states.file(name):
            copy_named(self.remote, [name], self.path)

    @property
    def place(self) -> str:
        """The set's folder or URL, for people: without passwords and tokens."""
        return redacted(self.remote.url) if self.remote else str(self.path)

    @cached_property
    def records_dir(self) -> Path:
        """Folder of its journal and ledger; of a set behind a URL, copied there at the first use.

        Raises:
            LabelSetError: they cannot be read.
        """
        if self.remote is not None:
            copy_journal(self.remote, self.path, self.manifest.planned_units)
        return self.path

    @property
    def stored_bytes(self) -> int:
        """Size of its shards in bytes, including rows that a view leaves out."""
        return self.row_groups.stored_bytes

    @property
    def shards(self) -> tuple[str, ...]:
        """Shard paths relative to the set, by unit."""
        return self.row_groups.shards

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return self.row_groups.totals[0]

    @property
    def labels(self) -> int:
        """Number of labeled positions."""
        return self.row_groups.totals[1]

    @property
    def tokens(self) -> int:
        """Number of tokens, labeled or not."""
        return self.row_groups.totals[2]

    @property
    def content_digest(self) -> str:
        """Digest of all rows and labels: the hashes of the row groups, and the view's selection.

        Where the set has hidden states, it covers theirs, too.

        The manifest of a complete set states it, and `labeler verify` compares the two.
        """
        recorded = self.manifest.content_digest
        if recorded is not None and self.view is None and self.manifest.status == "complete":
            return recorded
        return content_digest(self.row_groups, self.hidden.of(self.row_groups))

    @property
    def digests(self) -> dict[str, str]:
        """Digests that are equal for equal label sets, wherever they are.

        `content` covers the hashes of all row groups, so it changes while a set is being labeled.
        """
        return {
            "identity": self.manifest.identity_digest,
            "plan": plan.sha256 if (plan := self.manifest.plan) else "",
            "content": self.content_digest,
        }

    def journal_entry(self, unit: int) -> UnitEntry | None:
        """Return the journal entry of a unit; None where there is none.

        Raises:
            LabelSetError: it was altered, or cannot be read.
        """
        entry = read_entry(self.path, unit)
        if entry is None and self.remote is not None:
            copy_entry(self.remote, self.path, unit)
            entry = read_entry(self.path, unit)
        return entry

    @property
    def columns(self) -> tuple[str, ...]:
        """The plain columns of its rows, without hidden states."""
        return tuple(identity_schema(self.manifest.identity).names)

    @property
    def tokenizer_dir(self) -> Path:
        """Folder of the teacher's tokenizer files."""
        return self.path / TOKENIZER

    def read_row_group(
        self,
        group: RowGroup,
        columns: Sequence[str] | None = None,
        *,
        verify: bool = True,
        data: bytes | None = None,
    ) -> pa.Table:
        """Read a row group, by default only after verifying its bytes.

        The columns are the plain columns of docs/format.md in either codec; and, where they are
        named, those of hidden states: `final`, `final_far`, `layer_3`, ...

        Args:
            group: one of `self.row_groups`.
            columns: the columns to read; all but hidden states by default.
            verify: hash the row group's bytes and compare the hash with the index.
            data: its bytes, where `self.reader.fetch` has returned them.

        Raises:
            LabelSetError: the shard is missing, truncated, altered, or from a different set.
        """
        names = self.columns if columns is None else columns
        with self.reader.open(group, "full" if verify else "none", data) as opened:
            return opened.read(names)

    def shard_facts(self, group: RowGroup) -> dict[str, Any]:
        """Return the JSON object in the footer of a row group's shard (docs/format.md).

        Raises:
            LabelSetError: as `read_row_group`.
        """
        return self.reader.shard_facts(group)


def open_label_set(
    path: Path | str,
    *,
    allow_partial: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> LabelSet:
    """Open a label set and check everything but the labels: manifest, index, tokenizer.

    Row groups are verified when they are read.

    Args:
        path: the set's folder, a view of a set (`*.view.json`), or the URL of either (`s3://...`,
            any filesystem of fsspec). From a URL, manifest, index and tokenizer are copied now, row
            groups when they are read; `schemas.remote` describes the cache.
        allow_partial: open a set that is still being labeled, with the units done so far. Units
            are drawn by hash, so they are an unbiased sample of the whole.
        storage_options: options of the URL's filesystem, for fsspec; its environment by default.

    Raises:
        LabelSetError: the set is missing, altered, unfinished, or of an unknown version.
    """
    if is_url(path):
        url, options = str(path).rstrip("/"), storage_options or {}
        if url.endswith(VIEW_SUFFIX):
            return _open_view(copy_view(url, options), url, options)
        return _open_remote(Remote(url, options), allow_partial=allow_partial)
    if Path(path).is_file():
        return _open_view(Path(path), str(path), {})
    return _open_folder(Path(path), allow_partial=allow_partial)


def _open_remote(remote: Remote, *, allow_partial: bool) -> LabelSet:
    folder = copy_metadata(remote)
    with naming(folder, remote.url):
        return _open_folder(folder, allow_partial=allow_partial, remote=remote)


def _open_folder(directory: Path, *, allow_partial: bool, remote: Remote | None = None) -> LabelSet:
    manifest = read_manifest(directory)
    if manifest.status == "complete":
        groups = read_index(directory, manifest.index_pages)
        if groups.n_shards != manifest.planned_units:
            raise LabelSetError(
                f"the manifest says {manifest.planned_units} units, the index has "
                f"{groups.n_shards}",
                path=directory,
            )
    elif allow_partial:
        groups = index_entries(read_entries(directory, manifest.planned_units))
    else:
        raise UnfinishedError(
            "the label set is not finished",
            path=directory,
            hint="run the command that was making it again: it resumes; or give --allow-partial to "
            "the commands that have it",
        )
    check_tokenizer(directory, manifest)
    return LabelSet(directory, manifest, groups, remote=remote)


def _open_view(path: Path, place: str, options: dict[str, Any]) -> LabelSet:
    """Open the set of a view, with the rows that the view keeps.

    The set may be unfinished: the rows of a view exist.

    Args:
        path: the view's file.
        place: the view's path or URL, which the path of the set is relative to.
        options: options of the set's filesystem.
    """
    view = read_view(path)
    location = view_target(place, view.label_set)
    if is_url(location):  # a folder: a view of views could name itself
        labels = _open_remote(Remote(location, options), allow_partial=True)
    else:
        labels = _open_folder(Path(location), allow_partial=True)
    hint = "make the view again with `labeler curate`"
    if labels.manifest.identity_digest != view.identity_digest:
        raise LabelSetError(
            f"the view belongs to a different label set than {labels.place}",
            path=place,
            hint=hint,
        )
    try:
        groups = labels.row_groups.keep(view.kept)
    except ValueError as error:
        raise LabelSetError(f"{labels.place} {error}", path=place, hint=hint) from error
    return replace(labels, row_groups=groups, view=view)


def check_tokenizer(directory: Path, manifest: Manifest) -> None:
    """Refuse a set whose tokenizer files are missing or are not the teacher's.

    Raises:
        LabelSetError: names the file concerned.
    """
    for file in manifest.tokenizer_files:
        path = set_file(directory, file.path)
        if not path.is_file() or sha256_bytes(path.read_bytes()) != file.sha256:
            state = "altered" if path.is_file() else "missing"
            raise LabelSetError(
                f"a tokenizer file is {state}",
                path=path,
                hint="copy it again from the teacher's checkpoint",
            )
    try:
        found = tokenizer_digest(directory / TOKENIZER)
    except (OSError, ValueError) as error:
        raise LabelSetError(
            f"the tokenizer cannot be read: {first_line(error)}", path=directory / TOKENIZER
        ) from error
    if found != manifest.identity.tokenizer:
        raise LabelSetError("the tokenizer is not the teacher's", path=directory / TOKENIZER)
