"""The fields of a Parquet footer or page header that matter here, parsed without PyArrow.

PyArrow ends the process where a column's part of a footer contradicts itself: its accessors do not
catch what its C++ library throws. Reading the column by the library does.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
BOOLEANS, INTEGERS = frozenset((1, 2)), frozenset((I16, I32, I64))
DEPTH = 16
"""Structs and lists inside each other that are skipped; Parquet nests fewer than 8."""

Spec = dict[int, tuple[int, Any]]
"""By field: its kind; and for a struct its own fields, for a list the kind and fields of items."""
_COLUMN: Spec = {
    1: (I32, None),
    4: (I32, None),
    5: (I64, None),
    7: (I64, None),
    9: (I64, None),
    11: (I64, None),
}
FACTS = tuple(_COLUMN)
CHUNK: Spec = {1: (BINARY, None), 3: (STRUCT, _COLUMN), 8: (STRUCT, {}), 9: (BINARY, None)}
"""A column of a row group: its file (1), its facts (3: type, codec, values, stored bytes, offsets
of data and dictionary), and encryption (8, 9)."""
_DATA_PAGE: Spec = {1: (I32, None), 2: (I32, None)}
PAGE: Spec = {
    1: (I32, None),
    2: (I32, None),
    3: (I32, None),
    5: (STRUCT, _DATA_PAGE),
    7: (STRUCT, _DATA_PAGE),
    8: (STRUCT, {1: (I32, None), 4: (I32, None)}),
}
"""Type, size and stored size of a page, and the header of its type, with values and encoding."""


def parse_struct(data: bytes | memoryview, at: int, spec: Spec) -> tuple[dict[int, Any], int]:
    """Return the wanted fields of a struct, and the offset of what follows it.

    A field of another kind than the wanted one is skipped, as in Thrift's own readers.

    Raises:
        ValueError: this is not such a struct.
    """
    try:
        return _struct(data, at, spec)
    except IndexError as error:
        raise ValueError("it is cut off") from error


def parse_column(data: bytes, at: int) -> dict[int, Any]:
    """Return the fields of `CHUNK` of a column.

    Raises:
        ValueError: as `parse_struct`.
    """
    found = _usual_column().match(data, at)
    if found is None:
        return parse_struct(data, at, CHUNK)[0]
    places = zip(FACTS, found.regs[1:], strict=True)
    return {
        3: {
            n: _value(data, start, _COLUMN[n][0], None)[0] for n, (start, _) in places if start >= 0
        }
    }


def find_row_groups(data: bytes) -> list[tuple[int, list[int]]]:
    """Return the number of rows of each row group of a footer, and the offsets of its columns.

    Raises:
        ValueError: this is not a footer.
    """
    found: list[tuple[int, list[int]]] = []
    field = at = 0
    try:
        while data[at]:
            field, kind, at = _field(data, at, field)
            if (field, kind) != (4, LIST):
                at = _skip(data, at, kind, 0)
                continue
            found = []
            size, item, at = _list_head(data, at)
            if item != STRUCT and size:
                raise ValueError("its row groups are none")
            for _ in range(size):
                rows, columns, at = _row_group(data, at)
                found.append((rows, columns))
    except IndexError as error:
        raise ValueError("it is cut off") from error
    return found


def _row_group(data: bytes, at: int) -> tuple[int, list[int], int]:
    rows, columns, field = -1, list[int](), 0
    while data[at]:
        field, kind, at = _field(data, at, field)
        if (field, kind) == (3, I64):
            rows, at = _value(data, at, I64, None)
        elif (field, kind) == (1, LIST):
            columns = []
            size, item, at = _list_head(data, at)
            if item != STRUCT and size:
                raise ValueError("its columns are none")
            match = _usual_column().match
            for _ in range(size):
                columns.append(at)
                found = match(data, at)
                at = _skip_struct(data, at, 0) if found is None else found.end()
        else:
            at = _skip(data, at, kind, 0)
    return rows, columns, at + 1


def _field(data: bytes, at: int, field: int) -> tuple[int, int, int]:
    """Return (number, kind, offset of the value) of the field that follows `field`."""
    head = data[at]
    if head >> 4:
        return field + (head >> 4), head & 15, at + 1
    number, at = _integer(data, at + 1)
    return number, head & 15, at


def _struct(data: bytes | memoryview, at: int, spec: Spec) -> tuple[dict[int, Any], int]:
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head > 15:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        wanted = spec.get(field)
        if wanted is None or wanted[0] != kind:
            at = _skip(data, at, kind, 0)
        else:
            found[field], at = _value(data, at, kind, wanted[1])
    return found, at + 1


def _value(data: bytes | memoryview, at: int, kind: int, spec: Any) -> tuple[Any, int]:
    if kind in INTEGERS:
        value, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
        value = (value >> 1) ^ -(value & 1)
        bits = 31 if kind == I32 else 63
        if not -(1 << bits) <= value < 1 << bits:
            raise ValueError("a number is too large")
        return value, at
    if kind == BINARY:
        length, at = _varint(data, at)
        if length > len(data) - at:
            raise ValueError("a text is cut off")
        return bytes(data[at : at + length]), at + length
    if kind == STRUCT:
        return _struct(data, at, spec)
    size, item, at = _list_head(data, at)
    if item != spec[0] and size:
        raise ValueError("a list has items of another kind")
    items = []
    for _ in range(size):
        value, at = _value(data, at, item, spec[1])
        items.append(value)
    return items, at


def _skip(data: bytes | memoryview, at: int, kind: int, depth: int) -> int:
    """Return the offset of what follows a value."""
    if kind in INTEGERS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == STRUCT:
        return _skip_struct(data, at, depth)
    if kind in (LIST, SET):
        if depth > DEPTH:
            raise ValueError("it is nested too deeply")
        size, item, at = _list_head(data, at)
        return _skip_items(data, at, size, item, depth + 1)
    if kind in BOOLEANS:  # a boolean field is its own value
        return at
    if kind == BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind == BYTE:
        return at + 1
    if kind == DOUBLE:
        return at + 8
    raise ValueError("it has a field of an unknown kind")


def _skip_items(data: bytes | memoryview, at: int, size: int, kind: int, depth: int) -> int:
    """Return the offset of what follows the items of a list."""
    if kind == STRUCT:
        for _ in range(size):
            at = _skip_struct(data, at, depth)
    elif kind == BINARY:
        for _ in range(size):
            length = data[at]
            at += 1 + length
            if length > 127:
                length, at = _varint(data, at - 1 - length)
                at += length
    elif kind in INTEGERS:
        if bytes(data[at : at + size]).isascii():  # each number takes one byte
            return at + size
        for _ in range(size):
            while data[at] > 127:
                at += 1
            at += 1
    elif kind in BOOLEANS or kind == BYTE:
        at += size
    else:
        for _ in range(size):
            at = _skip(data, at, kind, depth)
    return at


def _skip_struct(data: bytes | memoryview, at: int, depth: int) -> int:
    """Return the offset of what follows a struct.

    A footer has hundreds, and most of the time of reading one is spent here.
    """
    if depth > DEPTH:
        raise ValueError("it is nested too deeply")
    while head := data[at]:
        at += 1
        if head < 16:
            _, at = _varint(data, at)
        kind = head & 15
        if kind in INTEGERS:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += 1 + data[at]
        elif kind == LIST:
            size, item, at = _list_head(data, at)
            at = _skip_items(data, at, size, item, depth + 1)
        elif kind == STRUCT:
            at = _skip_struct(data, at, depth + 1)
        else:
            at = _skip(data, at, kind, depth)
    return at + 1


@cache
def _usual_column() -> re.Pattern[bytes]:
    """Return a pattern of columns as Arrow writes them; its groups are the numbers of `FACTS`.

    Reading by it takes a third of the time. Each byte decides how the next are read, so a match
    ends where `_skip_struct` does. Heads of one byte count fields upward, so that none comes twice.
    Longer texts and lists, deeper structs, fields in other places and long heads do not match.
    """

    def heads(*kinds: int) -> bytes:
        return _any_of(n << 4 | kind for kind in kinds for n in range(1, 16))

    def text(longest: int) -> bytes:
        return b"(?:%b)" % b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(longest + 1))

    def items(item: bytes, *kinds: int, most: int) -> bytes:
        """Return a pattern of lists of up to `most` items."""
        sizes = ((n, _any_of(n << 4 | kind for kind in kinds)) for n in range(most + 1))
        return b"|".join(b"%b(?:%b){%d}" % (head, item, n) for n, head in sizes)

    def struct(*fields: bytes) -> bytes:
        return b"(?:%b)*\\x00" % b"|".join(fields)

    number = rb"[\x80-\xff]*[\x00-\x7f]"
    numbers = items(number, *INTEGERS, most=8)
    numeric = heads(*INTEGERS) + number
    levels = b"%b(?:%b)" % (heads(LIST), numbers)
    statistics = struct(numeric, heads(*BOOLEANS), heads(BINARY) + text(24), levels)
    pages = b"(?:%b|%b)" % (numbers, items(struct(numeric), STRUCT, most=4))
    later = b"(?:%b|%b%b|%b%b)*" % (numeric, heads(STRUCT), statistics, heads(LIST), pages)
    path = items(text(24), BINARY, most=5)
    # Type, encodings, path, codec, values, size, stored size, offsets of data and dictionary.
    facts = rb"\x15(%b)\x19(?:%b)\x19(?:%b)\x15(%b)\x16(%b)\x16%b\x16(%b)\x26(%b)"
    facts %= (number, numbers, path, number, number, number, number, number)
    no_dictionary = b"(?=%b)" % _any_of([0, *range(3 << 4, 256)])
    facts += rb"(?:\x26(%b)|%b)%b\x00" % (number, no_dictionary, later)
    return re.compile(rb"(?:\x26%b\x1c|\x3c)%b(?:%b)*\x00" % (number, facts, numeric), re.DOTALL)


def _any_of(values: Iterable[int]) -> bytes:
    return b"[%b]" % b"".join(b"\\x%02x" % value for value in values)


def _list_head(data: bytes | memoryview, at: int) -> tuple[int, int, int]:
    head = data[at]
    size, at = head >> 4, at + 1
    if size == 15:
        size, at = _varint(data, at)
    if size > len(data) - at:
        raise ValueError("a list states more items than there are bytes")
    return size, head & 15, at


def _integer(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
