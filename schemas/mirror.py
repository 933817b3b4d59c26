"""What a label set behind a URL says of itself, copied to a local folder; its shards stay there."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import LabelSetError
from schemas.journal import JOURNAL
from schemas.manifest import MANIFEST, read_manifest


def mirror(url: str, options: dict[str, Any]) -> Path:
    """Copy manifest, index and tokenizer (and the journal, of an unfinished set).

    Args:
        url: of the set's folder, for fsspec; options: of its filesystem.

    Returns:
        A folder that `open_label_set` opens and checks, and that is deleted when Python ends.

    Raises:
        LabelSetError: there is no set, or a file of it cannot be read.
    """
    import fsspec

    folder = Path(tempfile.mkdtemp(prefix="softshards-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        _copy(filesystem, root, [MANIFEST], folder)
        manifest = read_manifest(folder)
        named = [file.path for file in (*manifest.tokenizer_files, *manifest.index_pages)]
        _copy(filesystem, root, named, folder)
        if manifest.status != "complete":
            entries = filesystem.glob(f"{root}/{JOURNAL}/unit-*.json")
            _copy(filesystem, root, [f"{JOURNAL}/{Path(e).name}" for e in entries], folder)
    except (OSError, ImportError, ValueError) as error:
        raise LabelSetError(
            f"no label set can be read here: {error}",
            path=url,
            mend="give the URL of the folder with manifest.json, and its filesystem's options",
        ) from error
    return folder


def _copy(filesystem: Any, root: str, names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(filesystem.cat_file(f"{root}/{name}"))
