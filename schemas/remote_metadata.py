"""What a label set behind a URL says of itself, copied to a local folder; its shards stay there."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import LabelSetError
from schemas.journal import JOURNAL
from schemas.manifest import MANIFEST, read_manifest
from schemas.remote import FETCH_THREADS, Remote


def mirror(remote: Remote) -> Path:
    """Copy manifest, index and tokenizer (and the journal, of an unfinished set).

    Args:
        remote: where the set is.

    Returns:
        A folder that `open_label_set` opens and checks, and that is deleted when Python ends.

    Raises:
        LabelSetError: there is no set, or a file of it cannot be read.
    """
    folder = _folder()
    with _said_of(remote.url):
        _copy(remote, [MANIFEST], folder)
    manifest = read_manifest(folder)
    named = [file.path for file in (*manifest.tokenizer_files, *manifest.index_pages)]
    with _said_of(remote.url):
        if manifest.status != "complete":
            named += [f"{JOURNAL}/{name}" for name in remote.names(JOURNAL, "unit-*.json")]
        _copy(remote, named, folder)
    return folder


def mirror_view(url: str, options: dict[str, Any]) -> Path:
    """Copy a view, as `mirror` copies the rest.

    Raises:
        LabelSetError: it cannot be read.
    """
    parent, _, name = url.rpartition("/")
    folder = _folder()
    with _said_of(url):
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
        list(pool.map(copy, names))  # which raises what a thread raised


@contextmanager
def _said_of(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise LabelSetError(
            f"no label set can be read here: {error}",
            path=url,
            hint="give the URL of the folder with manifest.json (or of a view), and what its "
            "filesystem needs (docs/trainer.md)",
        ) from error
