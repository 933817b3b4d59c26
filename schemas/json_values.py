"""JSON of a stranger as Python values: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.errors import SoftshardsError, first_line


def parse_json(data: bytes | str) -> object:
    """Return a JSON value.

    Raises:
        ValueError: this is not JSON, it is nested too deeply, or a number has too many digits.
    """
    try:
        value: object = json.loads(data)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    return value


def parse_object(data: bytes | str) -> dict[str, object]:
    """Return a JSON object.

    Raises:
        ValueError: as `parse_json`, or it is another value.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}, not a JSON object")
    return value


def read_object(path: Path, *, hint: str | None = None) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        SoftshardsError: it is missing, or holds something else.
    """
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        what = f"the file cannot be read: {first_line(error)}"
        raise SoftshardsError(what, path=path, hint=hint) from error
