"""JSON of a stranger as Python values: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json


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
