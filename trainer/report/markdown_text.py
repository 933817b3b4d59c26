"""Text of others in Markdown: shown as it is, never read as markup; and files that are ours."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from schemas.printable import one_line

MARK = re.compile(r"<!-- written by `trainer report`, ([0-9a-f]{64}) -->\n\Z")
SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~$&])")


def escape_text(text: object) -> str:
    """Return text of one line in which nothing is Markdown or HTML."""
    return SPECIAL.sub(r"\\\1", one_line(str(text)))


def escape_cell(text: object) -> str:
    """Return text as code for a cell of a table: it holds no bar, and no backtick ends it."""
    line = one_line(str(text)).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or not line.strip() else ""
    return f"{fence}{space}{line}{space}{fence}"


def sign(text: str) -> str:
    """Return text with a last line by which it is known as ours, and as not edited since."""
    return f"{text.rstrip()}\n\n<!-- written by `trainer report`, {_digest(text)} -->\n"


def is_ours(path: Path) -> bool:
    """Return True if a file is missing, or is as `sign` left it."""
    if not path.exists():
        return True
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    found = MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()
