"""Columns of footers read by a pattern and field by field: the same, whatever they hold."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.thrift_compact import (
    CHUNK,
    _skip_struct,
    _usual_column,
    find_row_groups,
    parse_column,
    parse_struct,
)
from tests.schemas.sets import GOLDEN

CASES = 3000
NEW_BYTES = (0x00, 0x02, 0x06, 0x15, 0x16, 0x18, 0x19, 0x1C, 0x26, 0x3C, 0x80, 0xFF)


def columns(path: Path) -> list[bytes]:
    """Return the columns of a file's footer, each with what follows it."""
    data = path.read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    places = [at for _, offsets in find_row_groups(footer) for at in offsets]
    return [footer[at : _skip_struct(footer, at, 0) + 8] for at in places]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Columns of a shard, and of files that Arrow writes without our options."""
    path = tmp_path_factory.mktemp("files") / "a.parquet"
    found = columns(GOLDEN / "shards" / "part-000000.parquet")
    table = pa.table({"text": ["a" * n for n in range(60)], "n": range(60), "none": [None] * 60})
    for options in ({}, {"use_dictionary": False}, {"write_statistics": False}):
        pq.write_table(table, path, row_group_size=9, **options)
        found += columns(path)
    return found


def changed(column: bytes, random: Random) -> bytes:
    found = bytearray(column)
    for _ in range(random.choice((1, 1, 2, 3))):
        at, how = random.randrange(len(found)), random.random()
        if how < 0.5:
            found[at] ^= 1 << random.randrange(8)
        elif how < 0.7:
            found[at] = random.choice(NEW_BYTES)
        elif how < 0.85 and len(found) > 9:
            del found[at : at + random.randrange(1, 4)]
        else:
            found[at:at] = bytes(random.choices(NEW_BYTES, k=random.randrange(1, 4)))
    return bytes(found)


def test_most_columns_are_usual(usual: list[bytes]) -> None:
    matched = sum(_usual_column().match(column) is not None for column in usual)
    assert matched > 0.8 * len(usual) > 40


def test_both_ways_of_reading_agree(usual: list[bytes]) -> None:
    random, matched = Random(14), 0
    for number in range(CASES):
        column = usual[number % len(usual)]
        if number >= len(usual):
            column = changed(column, random)
        found = _usual_column().match(column)
        if found is None:
            continue
        matched += 1
        assert found.end() == _skip_struct(column, 0, 0)
        try:
            facts = parse_struct(column, 0, CHUNK)[0]
        except ValueError:
            with pytest.raises(ValueError, match=r"too l|cut off"):
                parse_column(column, 0)
        else:
            assert parse_column(column, 0) == facts
    assert matched > CASES // 4
