"""Arguments of tool calls: the values that were given, in the form that the template takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.read_records import Record, read_records
from labeler.labeling.teacher.teacher import Teacher
from tests.labeler.labeled_chats import CALLS, TEXT_CALLS, labeled, make_teacher, reason

ASKED = {"role": "user", "content": "What time is it?"}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("objects"), CALLS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("texts"), TEXT_CALLS)


def chat(call: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "tool_calls": call, **more}
    return {"messages": [ASKED, message]}


def call(*arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "now", **({"arguments": arguments[0]} if arguments else {})}
    return [{"id": "c1", "type": "function", "function": function}]


VALUES = [
    {"zone": None, "day": 2},
    {"a": {"b": None, "c": [None, {"d": None}]}},
    {"yes": True, "no": False},
    {"big": 12345678901234567890, "part": 1.5},
    {"text": 'é\n"q"', "empty": "", "list": []},
    {"inner": '{"zone": null}'},
    {},
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_every_value_is_kept(objects: Teacher, texts: Teacher, value: dict[str, Any]) -> None:
    written = json.dumps(value, ensure_ascii=False)
    for given in (value, written, json.dumps(written)):
        expected = f'<tool_call>{{"name": "now", "arguments": {written}}}</tool_call><|im_end|>'
        assert labeled(objects, chat(call(given))) == [expected]
    expected = f"<tool_call>now {written}</tool_call><|im_end|>"
    assert labeled(texts, chat(call(value))) == [expected]
    assert labeled(texts, chat(call(written))) == [expected]


def test_text_stays_as_it_was_written(texts: Teacher) -> None:
    given = '{"day":2,  "zone":1e3}'
    assert labeled(texts, chat(call(given))) == [f"<tool_call>now {given}</tool_call><|im_end|>"]


@pytest.mark.parametrize("given", [call(), call(None), call(""), call(" "), call({}), call("{}")])
def test_no_arguments_are_an_empty_object(
    objects: Teacher, texts: Teacher, given: list[Any]
) -> None:
    expected = '<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>'
    assert labeled(objects, chat(given)) == [expected]
    assert labeled(texts, chat(given)) == ["<tool_call>now {}</tool_call><|im_end|>"]


@pytest.mark.parametrize(
    "given",
    [
        json.dumps(call({"day": 2})),
        call({"day": 2})[0],
        [{"name": "now", "arguments": {"day": 2}}],
        [{"name": "now", "parameters": {"day": 2}}],
        [{"name": "now", "input": {"day": 2}}],
        [{"function": {"name": "now", "arguments": [("day", 2)]}}],
    ],
    ids=["list as text", "one call", "flat", "parameters", "input", "map"],
)
def test_calls_in_other_forms(objects: Teacher, texts: Teacher, given: Any) -> None:
    expected = '<tool_call>{"name": "now", "arguments": {"day": 2}}</tool_call><|im_end|>'
    assert labeled(objects, chat(given)) == [expected]
    assert labeled(texts, chat(given)) == ['<tool_call>now {"day": 2}</tool_call><|im_end|>']


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (call("zone=UTC"), "call 0 of message 1 (assistant) has arguments that are text, but not"),
        (call('{"day": '), "are text, but not JSON"),
        (call([1, 2]), "arguments that are not an object: [1, 2]"),
        (call("[1]"), "are not an object"),
        (call(7), "are not an object: 7"),
        (call("null"), None),
        ([{"type": "function", "function": {"arguments": {}}}], "has no name"),
        (["now()"], "call 0 of message 1 (assistant) is not an object"),
        ("now()", "tool calls that are text, but not JSON"),
        (7, "tool calls that are no list"),
    ],
)
def test_what_is_no_call_is_refused(objects: Teacher, given: Any, problem: str | None) -> None:
    if problem is None:
        assert '"arguments": {}' in labeled(objects, chat(given))[0]
    else:
        assert problem in reason(objects, chat(given))


@pytest.mark.parametrize("arguments", [{"day": None}, '{"day": null}'])
def test_legacy_calls_become_tool_calls(objects: Teacher, arguments: Any) -> None:
    legacy = {"name": "now", "arguments": arguments}
    messages = [
        ASKED,
        {"role": "assistant", "content": None, "function_call": legacy},
        {"role": "function", "name": "now", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ]
    assert labeled(objects, {"messages": messages}) == [
        '<tool_call>{"name": "now", "arguments": {"day": null}}</tool_call><|im_end|>',
        "Noon.<|im_end|>",
    ]


def test_a_template_that_prints_pythons_form_gets_text(tmp_path: Path) -> None:
    printed = CALLS.replace("(c.function | tojson)", "c.function.name ~ c.function.arguments")
    teacher = make_teacher(tmp_path, printed)
    assert labeled(teacher, chat(call({"day": None}))) == [
        '<tool_call>now{"day": null}</tool_call><|im_end|>'
    ]


def test_tools_keep_the_nulls_of_their_parameters(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "{{ tools | tojson }}" + CALLS)
    tool = {"name": "now", "parameters": {"zone": {"default": None}}, "strict": None}
    record = {"messages": [ASKED, {"role": "assistant", "content": "noon"}], "tools": [tool]}
    first = labeled(teacher, record, spans="everything")[0]
    assert '"parameters": {"zone": {"default": null}}}' in first
    assert "strict" not in first


def parquet_record(path: Path, calls: Any) -> dict[str, Any]:
    other = chat(call({"zone": "UTC"}))["messages"]
    rows = [chat(calls)["messages"], other]
    pq.write_table(pa.table({"messages": rows}), path)
    (file,) = find_inputs((str(path),))
    record = next(iter(read_records(file)))
    assert isinstance(record, Record)
    return record.columns


def test_structs_get_no_arguments_of_other_rows(objects: Teacher, tmp_path: Path) -> None:
    record = parquet_record(tmp_path / "a.parquet", call({"day": 2}))
    expected = '<tool_call>{"name": "now", "arguments": {"day": 2}}</tool_call><|im_end|>'
    assert labeled(objects, record) == [expected]


def test_json_text_in_parquet_keeps_its_nulls(objects: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"messages": [json.dumps(chat(call({"day": None}))["messages"])]}), path
    )
    (file,) = find_inputs((str(path),))
    record = next(iter(read_records(file)))
    assert isinstance(record, Record)
    assert '"arguments": {"day": null}' in labeled(objects, record.columns)[0]
