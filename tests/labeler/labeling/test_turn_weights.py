"""A turn with weight 0 has no labels; other weights are refused."""

from __future__ import annotations

from typing import Any

import pytest

from labeler.labeling.inputs.read_records import ArrowColumns
from labeler.labeling.teacher.teacher import Teacher
from tests.labeler.labeled_chats import PLAIN, labeled, make_teacher, read, reason, text_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"), PLAIN)


def chat(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "5"} | first,
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Sorry: 4."} | second,
    ]
    return {"messages": messages}


FIRST, SECOND = "5<|im_end|>", "Sorry: 4.<|im_end|>"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"weight": 0}, {"weight": 1}, [SECOND]),
        ({"weight": 0.0}, {}, [SECOND]),
        ({"weight": False}, {"weight": True}, [SECOND]),
        ({"train": False}, {"train": True}, [SECOND]),
        ({"train": 0}, {}, [SECOND]),
        ({"training": False}, {}, [SECOND]),
        ({"loss": False}, {"loss": True}, [SECOND]),
        ({"weight": 1}, {"weight": 0}, [FIRST]),
        ({"weight": None}, {}, [FIRST, SECOND]),
        ({"loss": 0.7}, {"loss": 0}, [FIRST, SECOND]),
        ({"weight": 1.0, "train": True}, {}, [FIRST, SECOND]),
    ],
)
def test_weight_0_is_unlabeled(
    teacher: Teacher, first: dict[str, Any], second: dict[str, Any], expected: list[str]
) -> None:
    columns = chat(first, second)
    assert labeled(teacher, columns) == expected
    assert labeled(teacher, ArrowColumns(columns)) == expected
    assert text_of(teacher, read(teacher, columns)) == text_of(teacher, read(teacher, chat({}, {})))


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", "1", [0], float("nan")])
@pytest.mark.parametrize("key", ["weight", "train"])
def test_other_weights_are_refused(teacher: Teacher, key: str, weight: Any) -> None:
    why = reason(teacher, chat({key: weight}, {}))
    assert f"message 1 (assistant) has {key} {weight!r}; a turn is labeled (1) or not (0)" in why


def test_no_turn_is_left(teacher: Teacher) -> None:
    unlabeled = {"weight": 0}
    assert "nothing to label" in reason(teacher, chat(unlabeled, unlabeled))
    assert "nothing to label" in reason(teacher, chat({}, unlabeled), spans="completion")


@pytest.mark.parametrize("spans", ["turns", "everything"])
def test_other_spans_leave_it_out_too(teacher: Teacher, spans: str) -> None:
    everything = "".join(labeled(teacher, chat({}, {}), spans=spans))
    assert FIRST in everything
    less = labeled(teacher, chat({"weight": 0}, {}), spans=spans)
    assert "".join(less) == everything.replace(FIRST, "")


def test_a_question_of_weight_0(teacher: Teacher) -> None:
    columns = chat({}, {})
    columns["messages"][2]["weight"] = 0
    assert labeled(teacher, columns, spans="turns") == ["2+2?", FIRST, SECOND]
    assert "Sure?" not in "".join(labeled(teacher, columns, spans="everything"))


def test_generation_blocks_obey_weights(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = "{{ m.content | trim }}{{ '<|im_end|>\\n' }}"
    marked = "{% if m.role == 'assistant' %}{% generation %}" + content + "{% endgeneration %}"
    template = PLAIN.replace(content, marked + "{% else %}" + content + "{% endif %}")
    assert template != PLAIN
    teacher = make_teacher(tmp_path_factory.mktemp("blocks"), template)
    assert labeled(teacher, chat({"weight": 0}, {})) == [SECOND]
