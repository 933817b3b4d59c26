"""Settings in YAML: one error for whatever a file holds, and no aliases that expand without end."""

from __future__ import annotations

from pathlib import Path

import yaml

from schemas.errors import SoftshardsError, first_line

LARGEST_FILE = 1 << 20
MOST_VALUES = 100_000
"""Values, counted as often as aliases repeat them."""
READ_ERRORS = (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError)
"""What PyYAML raises; ValueError is for odd dates and for numbers of many digits."""


def read_settings(path: Path) -> object:
    """Return the content of a YAML file.

    Raises:
        SoftshardsError: the file is missing, too large, or not plain YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE >> 20} MB")
        content: object = yaml.safe_load(data.decode("utf-8-sig"))
        _count(content, MOST_VALUES, ())
    except FileNotFoundError as error:
        raise SoftshardsError("no such file", path=path, hint="check the path") from error
    except READ_ERRORS as error:
        what = f"it cannot be read as YAML: {first_line(error)}"
        raise SoftshardsError(what, path=path, hint="correct the file") from error
    return content


def check_flags(path: Path) -> None:
    """Refuse a file for `--config` that does not map flags to values.

    Raises:
        SoftshardsError: as `read_settings`, or the file holds something else.
    """
    content = read_settings(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        what = "it does not map flags to values"
        raise SoftshardsError(what, path=path, hint="write one flag per line, such as `k: 64`")


def _count(value: object, left: int, outer: tuple[int, ...]) -> int:
    """Return how many more values there may be after this one.

    Raises:
        ValueError: there are too many, or a value contains itself.
    """
    left -= 1
    if left < 0 or id(value) in outer:
        raise ValueError(f"aliases repeat more than {MOST_VALUES:,} values")
    if isinstance(value, dict | list | tuple | set):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            left = _count(part, left, (*outer, id(value)))
    return left
