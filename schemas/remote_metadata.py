"""Local copies of a remote label set's metadata. Its shards stay where they are."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from schemas.errors import naming
from schemas.file_names import (
    BATCH,
    JOURNAL,
    batch_name,
    entry_name,
    is_plan_rejects,
    rejects_name,
)
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST, read_manifest
from schemas.remote import FETCH_THREADS, Remote
from schemas.store_errors import NO_SET, as_store_error

JOURNALED = re.compile(
    JOURNAL + r"/(unit-\d{6,15}\.(json|rejects\.parquet)|units-\d{6,15}\.parquet)"
).fullmatch


def copy_metadata(remote: Remote) -> Path:
    """Copy manifest, index, tokenizer and ledger, and the journal of an unfinished set.

    Args:
        remote: the location of the set.

    Returns:
        A folder that `open_label_set` can open and check. It is deleted when Python exits.

    Raises:
        LabelSetError: the set is missing, or one of its files cannot be read.
    """
    folder = _folder()
    _copy(remote, [MANIFEST], folder)
    with naming(folder, remote.url):
        manifest = read_manifest(folder)
    named = [file.path for file in (*manifest.tokenizer_files, *manifest.index_pages)]
    if manifest.status != "complete":
        for pattern in ("units-*.parquet", "unit-*.json"):  # in the order of a compaction
            named += [f"{JOURNAL}/{name}" for name in remote.names(JOURNAL, pattern)]
    _copy(remote, named, folder)
    _copy_missing(remote, [LEDGER], folder)
    return folder


def copy_journal(remote: Remote, folder: Path, units: int) -> None:
    """Copy the whole journal, with its rejects, beside the other metadata.

    A file that the store does not have is missing in the copy, too.

    Args:
        remote: the location of the set.
        folder: the folder of `copy_metadata`.
        units: number of planned units, by which files are asked for where nothing is listed.

    Raises:
        LabelSetError: a file cannot be read.
    """
    names = [f"{JOURNAL}/{name}" for name in remote.names(JOURNAL, "*")]
    if not names:  # a web server without listings
        _copy_missing(remote, [batch_name(first) for first in range(0, units, BATCH)], folder)
        alone = (unit for unit in range(units) if not (folder / batch_name(unit)).exists())
        names = [name for unit in alone for name in (entry_name(unit), rejects_name(unit))]
    _copy_missing(remote, [n for n in names if JOURNALED(n) or is_plan_rejects(n)], folder)


def copy_entry(remote: Remote, folder: Path, unit: int) -> None:
    """Copy the journal entry of a unit, if there is one, beside the other metadata.

    Raises:
        LabelSetError: it cannot be read.
    """
    for name in (entry_name(unit), batch_name(unit)):
        _copy_missing(remote, [name], folder)
        if (folder / name).exists():
            return


def copy_view(url: str, options: dict[str, Any]) -> Path:
    """Copy a view, and return the path of the copy. It is deleted when Python exits.

    Raises:
        LabelSetError: the view cannot be read.
    """
    parent, _, name = url.rpartition("/")
    folder = _folder()
    _copy(Remote(parent, options), [name], folder)
    return folder / name


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="softshards-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _copy(
    remote: Remote, names: Iterable[str], folder: Path, *passing: type[FileNotFoundError]
) -> None:
    """Copy files; `passing` is FileNotFoundError where those that are missing do not matter."""

    def copy(name: str) -> None:
        with suppress(*passing):
            with as_store_error(f"{remote.url}/{name}", *passing, hint=NO_SET):
                data = remote.read(name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        list(pool.map(copy, names))  # raises the errors of the threads


def _copy_missing(remote: Remote, names: Sequence[str], folder: Path) -> None:
    """Copy the files that the copy lacks and the store has."""
    lacking = (name for name in names if not (folder / name).exists())
    _copy(remote, lacking, folder, FileNotFoundError)
