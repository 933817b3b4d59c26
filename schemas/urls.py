"""URLs beside paths on the command line. Imports nothing, for the sake of `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class _Token(Protocol):
    @property
    def value(self) -> str: ...


def is_url(path: Path | str) -> bool:
    """Check whether a path is a URL, for fsspec."""
    return isinstance(path, str) and "://" in path


def inside(folder: Path | str, name: str) -> Path | str:
    """Return the path or URL of a file in a folder; of the folder, if `name` is empty."""
    if isinstance(folder, str) and is_url(folder):
        return f"{folder}/{name}" if name else folder
    return Path(folder) / name


def read_location(_type: object, tokens: Sequence[_Token]) -> Path | str:
    """Return an argument as a URL, without a slash at its end, or as a path (for cyclopts)."""
    text = tokens[0].value
    return text.rstrip("/") if is_url(text) else Path(text)
