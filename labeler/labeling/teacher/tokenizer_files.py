"""A label set's copy of the teacher's tokenizer, so that no reader needs the teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

from schemas.file_names import TOKENIZER
from schemas.fingerprint import TOKENIZER_FILES, sha256_file
from schemas.manifest import FileDigest


def copy_tokenizer(folder: Path, out: Path) -> tuple[FileDigest, ...]:
    """Copy the tokenizer files of a folder into the label set at `out`.

    Returns:
        The copies' paths relative to `out`, with their digests.
    """
    target = out / TOKENIZER
    target.mkdir(parents=True, exist_ok=True)
    copied = []
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
            path = f"{TOKENIZER}/{name}"
            copied.append(FileDigest(path=path, sha256=sha256_file(target / name)))
    return tuple(copied)
