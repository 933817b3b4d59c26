"""Local copies of a remote label set's metadata. Its shards stay where they are."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from schemas.errors import LabelSetError
from schemas.file_names import JOURNAL, batch_name, entry_name
from schemas.manifest import MANIFEST, read_manifest
from schemas.remote import FETCH_THREADS, Remote


def copy_metadata(remote: Remote) -> Path:
    """Copy the manifest, index and tokenizer, and the journal of an unfinished set.

    Args:
        remote: the location of the set.

    Returns:
        A folder that `open_label_set` can open and check. It is deleted when Python exits.

    Raises:
        LabelSetError: the set is missing, or one of its files cannot be read.
    """
    folder = _folder()
    with as_label_set_error(remote.url):
        _copy(remote, [MANIFEST], folder)
    manifest = read_manifest(folder)
    named = [file.path for file in (*manifest.tokenizer_files, *manifest.index_pages)]
    with as_label_set_error(remote.url):
        if manifest.status != "complete":
            for pattern in ("units-*.parquet", "unit-*.json"):  # in the order of a compaction
                named += [f"{JOURNAL}/{name}" for name in remote.names(JOURNAL, pattern)]
        _copy(remote, named, folder)
    return folder


def copy_entry(remote: Remote, folder: Path, unit: int) -> None:
    """Copy the journal entry of a unit, if there is one, beside the other metadata.

    Raises:
        LabelSetError: it cannot be read.
    """
    for name in (entry_name(unit), batch_name(unit)):
        if not (folder / name).exists():
            with suppress(FileNotFoundError):
                _copy(remote, [name], folder)
                return


def copy_view(url: str, options: dict[str, Any]) -> Path:
    """Copy a view, and return the path of the copy. It is deleted when Python exits.

    Raises:
        LabelSetError: the view cannot be read.
    """
    parent, _, name = url.rpartition("/")
    folder = _folder()
    with as_label_set_error(url):
        _copy(Remote(parent, options), [name], folder)
    return folder / name


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="softshards-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _copy(remote: Remote, names: list[str], folder: Path) -> None:
    def copy(name: str) -> None:
        data = remote.read(name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        list(pool.map(copy, names))  # raises the errors of the threads


@contextmanager
def as_label_set_error(url: str) -> Iterator[None]:
    """Raise errors of the filesystem as a `LabelSetError` that names the URL."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise LabelSetError(
            f"no label set can be read here: {error}",
            path=url,
            hint="give the URL of the folder with manifest.json, or of a view, and the options of "
            "its filesystem (docs/trainer.md)",
        ) from error
