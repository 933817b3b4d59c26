"""Paths of a set's files, from names that the set itself states: inside its folder, no links.

A set may come from a stranger. A name such as `../outside/part.parquet`, or a symbolic link, would
make a reader open, a push upload, or a repair overwrite files that are not part of the set.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from schemas.errors import LabelSetError

COPY = "replace the link by a copy of what it points to; a set consists of regular files"


def inside_name(name: str) -> str:
    """Return a name that a set states for one of its files, if it lies inside the set's folder.

    Raises:
        ValueError: the name is absolute, leaves the folder, is not in its shortest spelling, or has
            a character that file systems or URLs read as something else.
    """
    plain = name.isprintable() and not any(sign in name for sign in '\\:?*#%"<>|')
    if not plain or not name or ".." in name.split("/") or PurePosixPath(name).as_posix() != name:
        raise ValueError(f"{name!r} is not inside the set's folder")
    if name.startswith("/") or name == ".":
        raise ValueError(f"{name!r} is not inside the set's folder")
    return name


def set_file(directory: Path, name: str) -> Path:
    """Return the path of a set's file, which may be missing.

    The folder itself may be a link: its place is the user's choice. Everything in it is the set's.

    Args:
        directory: the set's folder.
        name: path of the file, relative to the folder.

    Raises:
        LabelSetError: the file, or a folder on the way to it, is a link, or it is not a regular
            file (a device, a pipe).
    """
    path = directory
    try:
        inside_name(name)
    except ValueError as error:
        raise LabelSetError(str(error), path=directory) from error
    parts = name.split("/")
    for number, part in enumerate(parts, start=1):
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return directory / name
        if stat.S_ISLNK(mode):
            raise _link(path)
        if number == len(parts) and not stat.S_ISREG(mode):
            raise LabelSetError("not a regular file", path=path)
    return path


def require_no_links(directory: Path) -> None:
    """Refuse a folder that holds a link, before anything is written into it.

    Raises:
        LabelSetError: names the first link.
    """
    for link in links(directory):
        raise _link(link)


def links(directory: Path) -> Iterator[Path]:
    """Yield the symbolic links in a folder, at any depth, without following them."""
    for folder, folders, files in os.walk(directory):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            if path.is_symlink():
                yield path


def _link(path: Path) -> LabelSetError:
    return LabelSetError("a symbolic link in a label set is not followed", path=path, hint=COPY)
