"""Seeded damage to bytes and values, for the fuzzers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD_INTEGERS = (0, 1, -1, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
TOKENS = (
    *(b"\0", b"\n", b"\r", b'"', b"\\", b"[", b"{", b"]}", b",", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"NaN", b"1e999", b"-", b"\\ud800", b"\\u0000", b"null", b"9" * 5000, b"[" * 200, b"//"),
    *(b"{{", b"{%", b"&a *a", b"!!python/object:os.system", b"\x1b]0;x\x07", b"\xe2\x80\xae"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "\ud800"),
    *("[/x]", [], {}, [[]], [None], {"": {}}, [{}], {"role": "user"}, "[1]", '{"a": [', "9" * 5000),
)


def mutated(data: bytes, random: Random) -> bytes:
    """Return bytes with one to four changes."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(CHANGES)(found, random)
    return bytes(found)


def _flip(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _set_integer(data: bytearray, random: Random) -> None:
    width = random.choice((2, 4, 8))
    at = random.randrange(len(data) + 1) & -width
    value = random.choice(ODD_INTEGERS) & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, random.choice(("little", "big")))


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data) + 1) :]


def _remove(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    del data[at : at + random.choice((1, 8, 100))]


def _repeat(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    part = data[at : at + random.choice((1, 8, 100))]
    data[at:at] = part * random.choice((1, 2, 50))


def _insert(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(TOKENS)


def _swap(data: bytearray, random: Random) -> None:
    at, to = (random.randrange(len(data) + 1) for _ in range(2))
    data[at : at + 16], data[to : to + 16] = data[to : to + 16], data[at : at + 16]


CHANGES: Sequence[Callable[[bytearray, Random], None]] = (
    *(_flip, _flip, _set_byte, _set_byte, _set_integer, _set_integer),
    *(_cut, _remove, _repeat, _insert, _insert, _swap),
)


def mutated_value(value: Any, random: Random) -> Any:
    """Return JSON values with a part of them replaced, removed, wrapped or renamed."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice([*value])
        rest = {k: v for k, v in value.items() if k != key}
        how = random.randrange(10)
        if how == 0:
            return rest
        if how == 1:
            return rest | {random.choice(("", "x", "role", "text", key + "s")): value[key]}
        return value | {key: mutated_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        how = random.randrange(10)
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return value[:at] + [value[at]] * 3 + value[at:]
        return [*value[:at], mutated_value(value[at], random), *value[at + 1 :]]
    if random.random() < 0.2:
        return [value]
    return random.choice(ODD_VALUES)
