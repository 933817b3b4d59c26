"""Limits on one record of a corpus, so that no file takes more memory than a record may.

Corpora come from strangers, and a hundred kilobytes of zstd can be a gigabyte of one line.
docs/security.md lists the limits.
"""

from __future__ import annotations

import re

from schemas.size_limits import SIZE_LIMIT, base_bytes

MOST_NESTED = 100
"""Deepest nesting of lists and objects: code that walks a record recurses."""
MOST_CONTAINERS = 1 << 20
"""Most lists and objects of a record: each takes some 70 bytes in Python, and two in JSON."""


STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|$)', re.DOTALL)
"""A string of JSON, which may be cut off at the end."""


class BadValue(ValueError):
    """A record's value exceeds a limit, or cannot be stored; the others can be read."""


def largest_record() -> int:
    """Return the most bytes of a record: 16 MB, a quarter of the limit that users set.

    A quarter, because a character of a Python string takes up to four bytes.
    """
    return base_bytes() // 4


def too_large() -> str:
    """Return what is wrong with a record that is larger than that."""
    return f"larger than {largest_record() >> 20} MB ({SIZE_LIMIT} raises the limit)"


def check_containers(text: str) -> int:
    """Return the most lists and objects that a JSON text can hold.

    Raises:
        BadValue: they are too many.
    """
    count = text.count("[") + text.count("{")
    if count > MOST_CONTAINERS:
        bare = STRING.sub("", text)
        count = bare.count("[") + bare.count("{")
    if count > MOST_CONTAINERS:
        raise BadValue(f"has more than {MOST_CONTAINERS:,} lists and objects")
    return count


def check_nesting(value: object) -> None:
    """Refuse a value that is nested too deeply.

    Raises:
        BadValue: it is.
    """
    level = [value]
    for _ in range(MOST_NESTED + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise BadValue(f"is nested more than {MOST_NESTED} deep")
