"""JSON values one by one: lines, and the items of a file that is one array.

By the standard library's parser. Those that stream do not read what corpora hold: ijson knows no
NaN, turns numbers into `Decimal`, and its C backend crashes on a number of 5,000 digits (3.6).
orjson and Polars know no NaN either, and refuse a whole file for one bad row.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator

from labeler.labeling.inputs.record_limits import (
    MOST_NESTED,
    BadValue,
    check_containers,
    check_nesting,
    largest_record,
    too_large,
)

BLOCK = 1 << 18
TOO_DEEP = "is nested too deeply"
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
        BadValue: it exceeds a limit, or an escape is half of a surrogate pair.
        BadJson: it is not JSON.
    """
    containers = check_containers(text)
    try:
        value: object = DECODER.decode(text)
    except RecursionError as error:
        raise BadValue(TOO_DEEP) from error
    except ValueError as error:  # a number of more digits than Python converts, too
        raise BadJson(str(error)) from error
    _check_value(value, text, containers)
    return value


def _check_value(value: object, text: str, containers: int) -> None:
    if containers > MOST_NESTED:
        check_nesting(value)
    if "\\ud" in text or "\\uD" in text:  # an escape may be half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeError as error:
            raise BadValue(f"is not UTF-8: {error}") from error


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
        """Yield the values, or the `BadValue` of one that cannot be a record.

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
            except RecursionError as error:
                raise BadJson(f"item {number} {TOO_DEEP}") from error
            except json.JSONDecodeError as error:
                in_string = error.msg.startswith("Unterminated")
                if self._ended and (in_string or error.pos >= len(self._text.rstrip())):
                    what = f"EOF inside item {number}: the file is truncated"
                    raise BadJson(what) from error
                near_end = len(self._text) - error.pos < LONGEST_WORD
                if self._ended or not (in_string or near_end):
                    raise BadJson(f"item {number} is not JSON: {error.msg}") from error
            except ValueError as error:  # a number of more digits than Python converts
                raise BadJson(f"item {number} is not JSON: {error}") from error
            else:
                if end < len(self._text) or self._ended:  # at the cut, a number may go on
                    break
            self._read_more(f"item {number}")
        text, self._at = self._text[self._at : end], end
        try:
            _check_value(value, text, check_containers(text))
        except BadValue as error:
            return error
        return value

    def _read_more(self, what: str = "") -> None:
        # Twice as much each time: what was parsed in vain is no more than what was read.
        left = self._text[self._at :]
        if len(left) > largest_record():
            raise BadJson(f"{what} is {too_large()}")
        try:
            check_containers(left)
        except BadValue as error:
            raise BadJson(f"{what} {error}") from error
        block = self._stream.read(max(BLOCK, len(left)))
        self._ended = not block
        self._text, self._at = left + self._decoder.decode(block, final=self._ended), 0
