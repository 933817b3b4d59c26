"""Values that JSON or Python cannot represent: NaN, infinities, far dates, half surrogates."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.json_items import BLOCK
from labeler.labeling.inputs.read_records import Record, Reject, read_records
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import render
from labeler.labeling.teacher.teacher import open_teacher
from schemas import SoftshardsError


def read(path: Path) -> list[Record | Reject]:
    return [item for source in find_inputs([str(path)]) for item in read_records(source)]


def columns(path: Path) -> list[dict[str, Any]]:
    return [item.columns for item in read(path) if isinstance(item, Record)]


def strict(text: str) -> Any:
    """Return the value of a JSON text that keeps to the standard."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


VALUES = [
    ("NaN", math.nan),
    ("Infinity", math.inf),
    ("-Infinity", -math.inf),
    ('[1, NaN, {"a": -Infinity}]', [1, math.nan, {"a": -math.inf}]),
    ('"NaN, Infinity and -Infinity"', "NaN, Infinity and -Infinity"),
    ("-0.0", -0.0),
    ("12345678901234567890123", 12345678901234567890123),
    ("0.1", 0.1),
    ("1E5", 100000.0),
    ('"\\ud83d\\ude00"', "😀"),
    ('"\\\\ud83d"', "\\ud83d"),
]


@pytest.mark.parametrize(("written", "value"), VALUES)
def test_json_and_json_lines_give_the_same(tmp_path: Path, written: str, value: object) -> None:
    row = f'{{"text": "x", "v": {written}}}'
    (tmp_path / "array.json").write_text(f"[{row}, {row}]")
    (tmp_path / "lines.jsonl").write_text(f"{row}\n{row}")
    (tmp_path / "objects.json").write_text(f"{row}{row}\n")
    assert repr(columns(tmp_path)) == repr([{"text": "x", "v": value}] * 6)


def rendered_meta(path: Path, teacher: Path) -> list[Any]:
    config = LabelConfig(model=teacher, out=path / "out", max_length=64)
    opened = open_teacher(teacher, max_length=64)
    records = [item for source in find_inputs([str(path)]) for item in read_records(source)]
    return [strict(item.meta) for item in render(records, opened, config)]  # type: ignore[union-attr, arg-type]


def test_meta_is_valid_json(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text('[{"text":"the first row","score":NaN}]')
    (folder / "b.jsonl").write_text('{"text":"the first row","score":NaN}\n')
    (folder / "c.jsonl").write_text('{"text":"the first row","score":1e999}\n')
    (folder / "d.json").write_text('{"text":"the first row","score":-1e999}\n')
    assert rendered_meta(folder, teacher) == [{"score": None}] * 4
    table = pa.table({"text": ["the first row"] * 3, "score": [math.nan, math.inf, 0.5]})
    table = table.append_column("deep", pa.array([[{"x": math.nan}], [{"x": 2.0}], []]))
    pq.write_table(table, folder / "e.parquet")
    assert rendered_meta(folder, teacher)[4:] == [
        {"score": None, "deep": [{"x": None}]},
        {"score": None, "deep": [{"x": 2.0}]},
        {"score": 0.5, "deep": []},
    ]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "\\ude00\\ud83d", "\\ud83d x"])
def test_half_a_surrogate_pair_is_a_reject(tmp_path: Path, name: str, half: str) -> None:
    for where in (f'{{"text": "{half}"}}', f'{{"text": "x", "{half}": [1]}}'):
        (tmp_path / name).write_text(f'{where}\n{{"text": "good"}}\n')
        bad, good = read(tmp_path)
        assert isinstance(bad, Reject)
        assert "is not UTF-8" in bad.reason
        assert "surrogates not allowed" in bad.reason
        assert isinstance(good, Record)
        assert good.columns == {"text": "good"}
        assert (bad.id, good.id) == (f"{name}:0", f"{name}:1")


@pytest.mark.parametrize("shift", range(-9, 3))
def test_a_value_may_lie_across_blocks(tmp_path: Path, shift: int) -> None:
    tail = [{"v": [True, None, -1.5e-7], "ü\n\\": "\u2028😀"}, 17, {"v": 123456789}]
    for head in ("x" * (BLOCK + shift), "ü" * ((BLOCK + shift) // 2)):
        rows = [{"text": head}, *tail] * 2
        (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        expected = [row for row in rows if isinstance(row, dict)]
        assert columns(tmp_path / "a.json") == expected


def test_numbers_at_the_end_of_a_block_are_whole(tmp_path: Path) -> None:
    for shift in range(6):
        text = "[" + " " * (BLOCK - 1 - shift) + "12345, 6]"
        (tmp_path / "a.json").write_text(text)
        assert [item.reason for item in read(tmp_path) if isinstance(item, Reject)] == [
            "item 1 is a JSON int, not an object",
            "item 2 is a JSON int, not an object",
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('[{"a": 1}', "EOF inside the array"),
        ('[{"a": 1},', "EOF inside item 2"),
        ('[{"a": "1', "EOF inside item 1"),
        ('{"a": [', "EOF inside item 1"),
        ("[1,]", "item 2 is not JSON: Expecting value"),
        ("[,1]", "item 1 is not JSON: Expecting value"),
        ("[1 2]", "no comma follows item 1"),
        ('[{"a": nan}]', "item 1 is not JSON: Expecting value"),
        ("[1] [2]", "text follows the array"),
        ("[1]x", "text follows the array"),
        ("hello", "item 1 is not JSON"),
        ('{"a": 1}, {"a": 2}', "item 2 is not JSON"),
        ("{'a': 1}" + " " * 2 * BLOCK, "item 1 is not JSON: Expecting property name"),
        ("[" * 200_000, "item 1 is nested too deeply"),
    ],
)
def test_bad_json_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SoftshardsError, match=message) as caught:
        read(tmp_path / "a.json")
    assert "a.json" in str(caught.value)


def test_a_mistake_in_a_large_file_is_found_where_it_is(tmp_path: Path) -> None:
    good = '{"text": "x"},\n' * 100_000
    (tmp_path / "a.json").write_text(f'[{good}{{"text" "x"}},\n{good}1]')
    (source,) = find_inputs([str(tmp_path / "a.json")])
    records = read_records(source)
    assert sum(1 for _ in itertools.islice(records, 100_000)) == 100_000
    with pytest.raises(SoftshardsError, match="item 100001 is not JSON"):
        next(records)


def far(days: int) -> pa.Array:
    return pa.array([0, days], pa.int32()).cast(pa.date32())


FAR = 400_000_000_000_000
TIMES: list[tuple[pa.Array, str]] = [
    (pa.array([0, FAR], pa.timestamp("ms")), "14645-06-30 15:06:40.000"),
    (pa.array([0, FAR // 1000], pa.timestamp("s")), "14645-06-30 15:06:40"),
    (pa.array([0, FAR * 1000], pa.timestamp("us")), "14645-06-30 15:06:40.000000"),
    (pa.array([0, FAR // 1000], pa.timestamp("s", "Europe/Berlin")), "14645-06-30 16:06:40+0100"),
    (pa.array([0, -FAR // 1000], pa.timestamp("s")), "-10706-07-03 08:53:20"),
    (pa.array([0, 4_000_000], pa.int32()).cast(pa.date32()), "12921-08-18"),
    (pa.array([0, FAR // 86_400_000 * 86_400_000], pa.date64()), "14645-06-30"),
    (pa.array([0, FAR], pa.duration("s")), "400000000000000 s"),
]


@pytest.mark.parametrize(("times", "text"), TIMES)
def test_times_that_python_does_not_have_are_text(
    tmp_path: Path, times: pa.Array, text: str
) -> None:
    table = pa.table(
        {
            "text": ["first", "second"],
            "at": times,
            "in_struct": pa.StructArray.from_arrays([times, pa.array([1, 2])], ["at", "n"]),
            "in_list": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), times),
        }
    )
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    first, second = columns(tmp_path)
    assert isinstance(first["at"], datetime.date | datetime.timedelta)  # as ever
    assert second == {
        "text": "second",
        "at": text,
        "in_struct": {"at": text, "n": 2},
        "in_list": [text],
    }


def test_times_in_maps_and_dictionaries(tmp_path: Path) -> None:
    times = pa.array([FAR], pa.timestamp("ms"))
    table = pa.table(
        {
            "map": pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["k"]), times),
            "coded": pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), times),
        }
    )
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    text = "14645-06-30 15:06:40.000"
    assert columns(tmp_path) == [{"map": [("k", text)], "coded": text}]


def test_an_unknown_time_zone_is_shown_as_utc(tmp_path: Path) -> None:
    for unit, text in (("s", "1970-01-01 00:00:01Z"), ("ns", "1970-01-01 00:00:00.000000001Z")):
        pq.write_table(
            pa.table({"at": pa.array([1], pa.timestamp(unit, "Mars/Phobos"))}),
            tmp_path / "a.parquet",
        )
        (row,) = columns(tmp_path)
        assert row["at"] in (text, text.replace("01Z", "01.000Z"))  # Parquet has no seconds


def test_far_dates_reach_meta(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    at = pa.array([0, FAR], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["the first row"] * 2, "at": at}), folder / "rows.parquet")
    assert rendered_meta(folder, teacher) == [
        {"at": "1970-01-01 00:00:00"},
        {"at": "14645-06-30 15:06:40.000"},
    ]
