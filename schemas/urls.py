"""URLs beside paths on the command line. Imports nothing, for the sake of `--help`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Protocol

MODEL_PAGE = re.compile(
    r"https?:/+huggingface\.co/(?!datasets/|spaces/|collections/)([^/]+/[^/?#]+)"
)
"""The page of a model on the Hub, which people paste, as a `Path` spells it."""
URL_START = re.compile("([a-zA-Z][a-zA-Z0-9+.-]+):/")
"""The start of a URL, in a `Path` with one slash."""


class Token(Protocol):
    """An argument of the command line, as converters of cyclopts get it."""

    @property
    def value(self) -> str:
        """Its text."""
        ...


def is_url(path: Path | str) -> bool:
    """Check whether a path is a URL, for fsspec."""
    return isinstance(path, str) and "://" in path


def inside(folder: Path | str, name: str) -> Path | str:
    """Return the path or URL of a file in a folder; of the folder, if `name` is empty."""
    if isinstance(folder, str) and is_url(folder):
        return f"{folder}/{name}" if name else folder
    return Path(folder) / name


def last_part(place: Path | str) -> str:
    """Return the name of a folder or file, by its path or URL."""
    if isinstance(place, str) and is_url(place):
        return place.rstrip("/").rpartition("/")[2]
    return Path(place).resolve().name


def refuse_urls(_type: object, value: object) -> None:
    """Refuse a URL where a path is asked for (a validator of cyclopts, for every parameter).

    A `Path` of a URL is a path in a local folder that is named `s3:`.

    Raises:
        SoftshardsError: it is one.
    """
    if is_dataclass(value):  # the flags of a command: its fields are not asked one by one
        for field in fields(value):
            refuse_urls(field.type, getattr(value, field.name))
    from schemas.errors import SoftshardsError

    for path in value if isinstance(value, tuple | list) else (value,):
        if isinstance(path, Path) and URL_START.match(str(path)):
            hint = "copy it to this machine with the store's own tool, or write to a path here and "
            hint += "copy the result"
            if page := MODEL_PAGE.match(str(path)):
                hint = f"give its name: {page[1]}"
            raise SoftshardsError(
                "this is a URL; only a path on this machine can be given here",
                path=URL_START.sub(r"\1://", str(path), count=1),
                hint=hint,
            )


def read_location(_type: object, tokens: Sequence[Token]) -> Path | str:
    """Return an argument as a URL, without a slash at its end, or as a path (for cyclopts)."""
    text = tokens[0].value
    return text.rstrip("/") if is_url(text) else Path(text)
