"""The place of a label set that is written: a folder, or an object store behind a folder.

All code writes into a folder. Where the set lives in a store, that is a staging folder on this
machine: `pull` brings what other writers have published, `publish` sends what has changed, each
file before the files that name it, so the store holds a right set at every moment. Shards and
hidden states are deleted here once they are sent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from labeler.labeling.writing.leases import Lease
from schemas import SoftshardsError
from schemas.atomic import TMP_PREFIX, write_atomic
from schemas.cache_folder import staging_folder
from schemas.errors import naming
from schemas.file_names import (
    HIDDEN,
    INDEX,
    JOURNAL,
    SHARDS,
    TOKENIZER,
    entry_name,
    hidden_name,
    rejects_name,
    shard_name,
)
from schemas.journal import UnitEntry
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST
from schemas.object_store import (
    StoredFile,
    create,
    delete,
    list_files,
    put,
    require_writable,
)
from schemas.redact import redacted
from schemas.remote import FETCH_THREADS, Remote, is_url, retried
from schemas.set_files import QUARANTINE

BUSY = "another process is writing into this folder"
PARTS = (f"{SHARDS}/", f"{HIDDEN}/")
"""Folders of the files of units, which are deleted here once they are sent."""
READ_ATTEMPTS = 5
SWEEP_SECONDS = 2.0
"""Time that another process may hold a folder's lock to look whether its owner was killed."""


@dataclass
class SetPlace:
    """A folder to write a label set into; `open_place` makes one.

    Attributes:
        folder: the folder; of a set in a store, its staging folder.
        remote: the location in the store, if any.
        sizes: sizes in bytes of the shards and hidden states that the store has, by name; None
            without a store.
        leases: held by this process; each is checked before anything is published.
    """

    folder: Path
    remote: Remote | None = None
    sizes: dict[str, int] | None = None
    leases: list[Lease] = field(default_factory=list)
    _stored: dict[str, StoredFile] = field(default_factory=dict)
    _sent: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The set's folder or URL, for people."""
        return str(self.folder) if self.remote is None else redacted(self.remote.url)

    def pull(self, *, whole: bool = False) -> None:
        """Bring the folder to the state of the store.

        Args:
            whole: also the files of units and the quarantine, which a writer does without.

        Raises:
            SoftshardsError: the store fails.
        """
        if self.remote is None:
            return
        stored = {n: file for n, file in list_files(self.remote).items() if _is_of_set(n)}
        shards = {n: file.size for n, file in stored.items() if n.startswith(PARTS)}
        self.sizes = {} if whole else shards
        wanted = [name for name in stored if whole or not _is_bulk(name)]
        for name in self._sent.keys() - set(wanted):
            (self.folder / name).unlink(missing_ok=True)
            del self._sent[name]
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            list(pool.map(lambda name: self._fetch(name, stored[name]), wanted))

    def publish(self, names: Iterable[str] | None = None) -> None:
        """Send the files that were written or deleted since the last time.

        Args:
            names: the files to look at; by default all.

        Raises:
            SoftshardsError: the store fails, or another process has taken over.
        """
        if self.remote is None:
            return
        present = set(self._local_files())
        looked_at = present | self._sent.keys() if names is None else set(names)
        changed = {n for n in looked_at & present if self._sent.get(n) != self._stamp(n)}
        for name in sorted(changed, key=lambda n: (_turn(n), n)):
            self._require_leases()
            self._send(name)
        if gone := sorted((looked_at & self._sent.keys()) - present):
            self._require_leases()
            delete(self.remote, gone)
            for name in gone:
                del self._sent[name]

    def publish_unit(self, unit: int) -> None:
        """Send a unit: its shard, its hidden states, its rejects, then its journal entry."""
        names = shard_name(unit), hidden_name(unit), rejects_name(unit), entry_name(unit)
        self.publish(names)

    def _fetch(self, name: str, file: StoredFile) -> None:
        assert self.remote is not None
        remote, path, before = self.remote, self.folder / name, self._stored.get(name)
        known = name in self._sent and path.is_file() and path.stat().st_size == file.size
        if known and name != MANIFEST and (before is None or before.stamp == file.stamp):
            return

        def read() -> bytes:
            data = remote.read(name)
            if len(data) != file.size and name != MANIFEST:  # which others may be writing
                raise OSError(f"the store sent {len(data)} bytes of {file.size}")
            return data

        try:
            data = retried(READ_ATTEMPTS, read)
        except FileNotFoundError:  # another writer deleted it this moment
            return
        except OSError as error:
            raise SoftshardsError(
                str(error), path=f"{remote.url}/{name}", hint="run the same command again"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        self._stored[name] = file
        self._sent[name] = self._stamp(name)

    def _send(self, name: str) -> None:
        assert self.remote is not None
        path, stamp = self.folder / name, self._stamp(name)
        if name not in self._sent and (name == MANIFEST or _is_entry(name)):
            self._create(name, path.read_bytes())
            stamp = self._stamp(name)  # another process's entry may have been adopted
        else:
            put(self.remote, name, path)
        self._stored.pop(name, None)
        if name.startswith(PARTS) and self.sizes is not None:
            self.sizes[name] = path.stat().st_size
            path.unlink()
        else:
            self._sent[name] = stamp

    def _create(self, name: str, data: bytes) -> None:
        """Send a file that no other process may have sent in the meantime.

        Only a process whose lease ran out can be too late: for an entry, its shard may have
        replaced the one that the other's entry describes. If both describe the same labels, the
        other's replaces the one in the folder: the ledger sums what the store has.
        """
        assert self.remote is not None
        try:
            create(self.remote, name, data)
        except FileExistsError as error:
            if _is_entry(name):
                with suppress(ValueError, FileNotFoundError):
                    theirs = self.remote.read(name)
                    other = UnitEntry.model_validate_json(theirs)
                    if _content(other) == _content(UnitEntry.model_validate_json(data)):
                        write_atomic(self.folder / name, theirs)  # only the times differ
                        return
                delete(self.remote, [name])
            raise SoftshardsError(
                f"another process has written {name} in the meantime",
                path=self.name,
                hint="stop the other process, or wait for it, and run the same command again: it "
                "resumes",
            ) from error

    def _require_leases(self) -> None:
        for lease in self.leases:
            lease.require()

    def _local_files(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.folder):
            for file in files:
                name = Path(folder, file).relative_to(self.folder).as_posix()
                if _is_of_set(name):
                    yield name

    def _stamp(self, name: str) -> tuple[int, ...]:
        facts = (self.folder / name).stat()
        return facts.st_ino, facts.st_size, facts.st_mtime_ns


@contextmanager
def open_place(
    out: Path | str, *, writer: str = "0-of-1", options: dict[str, object] | None = None
) -> Iterator[SetPlace]:
    """Yield the place of a set; the staging folder of one in a store is emptied before and after.

    Args:
        out: the set's folder, or its URL.
        writer: rank of this process, and number of ranks.
        options: options of the URL's filesystem, for fsspec.

    Raises:
        SoftshardsError: another process of this machine writes there as the same rank.
    """
    if not is_url(out):
        yield SetPlace(Path(out))
        return
    url = str(out).rstrip("/")
    remote = Remote(url, options or {})
    require_writable(remote)
    folder = staging_folder(url, writer)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(folder.parent)
    lock = filelock.FileLock(_lock_of(folder), timeout=SWEEP_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise SoftshardsError(BUSY, path=url, hint="wait, or stop it") from error
    place = SetPlace(folder, remote, sizes={})
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            write_atomic(folder / MANIFEST, remote.read(MANIFEST))
        with naming(folder, place.name):
            yield place
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _sweep(staging: Path) -> None:
    """Delete the staging folders of killed processes."""
    for path in staging.iterdir():
        if path.is_dir():
            lock = filelock.FileLock(_lock_of(path), blocking=False)
            with suppress(filelock.Timeout), lock:
                shutil.rmtree(path, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _is_of_set(name: str) -> bool:
    """Check whether a file belongs to the set or its quarantine: no lock, nothing temporary."""
    return not any(part.startswith((TMP_PREFIX, ".lock")) for part in name.split("/"))


def _is_bulk(name: str) -> bool:
    return name.startswith((*PARTS, f"{QUARANTINE}/"))


def _is_entry(name: str) -> bool:
    return name.startswith(f"{JOURNAL}/unit-") and name.endswith(".json")


def _turn(name: str) -> int:
    """Return when a file is sent: after those that it names, or that readers look for with it."""
    if name == MANIFEST:
        return 5
    if name == LEDGER or name.startswith(f"{INDEX}/"):
        return 4
    if name.startswith(f"{JOURNAL}/"):
        return 2 if name.endswith(".rejects.parquet") else 3
    return 1 if name.startswith(f"{TOKENIZER}/") else 0


def _content(entry: UnitEntry) -> tuple[object, ...]:
    return entry.row_groups, entry.footer, entry.hidden, entry.rejects_sha256
