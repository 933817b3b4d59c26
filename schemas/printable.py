"""Text without anything that a terminal obeys or hides."""

from __future__ import annotations

import re

UNPRINTABLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but line feed and tab: escape sequences start here
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufeff\uffa0"  # invisible
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # of no width, or that reverse what follows
    "\u2028\u2029\ufff0-\ufffb"  # line separators, annotations
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # invisible, tags
    "\ud800-\udfff"  # bytes of file names that are not UTF-8, which cannot be encoded
    "]"
)
"""Controls, and what Unicode says to ignore in display, variation selectors excepted."""


def printable(text: str) -> str:
    """Return text with escapes (`\\x1b`, `\\u202e`) for what a terminal would obey or hide."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return `printable` text with its line feeds escaped, so that it cannot begin a message."""
    return printable(text).replace("\n", "\\n")
