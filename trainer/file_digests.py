"""Digests of the files in a folder: they tell whether one was altered since. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from schemas.errors import SoftshardsError
from schemas.fingerprint import sha256_file


def digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def check_digests(folder: Path, digests: Mapping[str, str], hint: str | None = None) -> None:
    """Check that the files of a folder are there and as they were; others may lie beside them.

    Raises:
        SoftshardsError: names the first file that is missing or altered.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise SoftshardsError("the file is missing", path=path, hint=hint)
        if sha256_file(path) != digest:
            raise SoftshardsError("the file was altered: its digest differs", path=path, hint=hint)
