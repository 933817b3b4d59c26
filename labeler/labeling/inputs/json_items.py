"""JSON values one by one: lines, and the items of a file that is one array."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator

BLOCK = 1 << 18
LONGEST_WORD = 16
"""More characters than `-Infinity` and a pair of `\\u` escapes have: an error that much before the
end of what was read is no consequence of the cut."""
SPACE = re.compile(r"[ \t\n\r]*")


class BadJson(ValueError):
    """The text is not JSON."""


DECODER = json.JSONDecoder()
"""Also reads NaN, Infinity and -Infinity, which JSON does not have: Python writes them."""


def read_value(text: str) -> object:
    """Return a JSON text's value.

    Raises:
        ValueError: it is not JSON.
        UnicodeError: an escape is half of a surrogate pair.
    """
    value: object = DECODER.decode(text)
    _check_escapes(value, text)
    return value


def _check_escapes(value: object, text: str) -> None:
    if "\\ud" in text or "\\uD" in text:  # an escape may be half of a surrogate pair
        json.dumps(value, ensure_ascii=False).encode()


class JsonItems:
    """The items of a top-level array, or a sequence of values, read block by block.

    Args:
        stream: UTF-8, with or without a BOM.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def __iter__(self) -> Iterator[object]:
        """Yield the values, or the `UnicodeError` of one that has half of a surrogate pair.

        Raises:
            BadJson: the file is not JSON, or ends too early.
            UnicodeDecodeError: it is not UTF-8.
        """
        number = 0
        first = self._next()
        if not first:
            raise BadJson("the file is empty")
        in_array = first == "["
        self._at += in_array
        while following := self._next():
            if in_array:
                if following == "]":
                    self._at += 1
                    if self._next():
                        raise BadJson("text follows the array")
                    return
                if number:
                    if following != ",":
                        raise BadJson(f"no comma follows item {number}")
                    self._at += 1
                    self._next()
            number += 1
            yield self._value(number)
        if in_array:
            raise BadJson("EOF inside the array: the file is truncated")

    def _next(self) -> str:
        """Skip white space; return the next character, or "" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def _value(self, number: int) -> object:
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                in_string = error.msg.startswith("Unterminated")
                if self._ended and (in_string or error.pos >= len(self._text.rstrip())):
                    what = f"EOF inside item {number}: the file is truncated"
                    raise BadJson(what) from error
                near_end = len(self._text) - error.pos < LONGEST_WORD
                if self._ended or not (in_string or near_end):
                    raise BadJson(f"item {number} is not JSON: {error.msg}") from error
            else:
                if end < len(self._text) or self._ended:  # at the cut, a number may go on
                    break
            self._read_more()
        start, self._at = self._at, end
        try:
            _check_escapes(value, self._text[start:end])
        except UnicodeError as error:
            return error
        return value

    def _read_more(self) -> None:
        # Twice as much each time: what was parsed in vain is no more than what was read.
        left = self._text[self._at :]
        block = self._stream.read(max(BLOCK, len(left)))
        self._ended = not block
        self._text, self._at = left + self._decoder.decode(block, final=self._ended), 0
