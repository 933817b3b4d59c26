"""Content in parts: text is joined where the template knows text alone; the rest has a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.teacher.teacher import Teacher
from tests.labeler.labeled_chats import IN_PARTS, PLAIN, START, labeled, make_teacher, reason

ASKED = {"role": "user", "content": "What is 2+2?"}


@pytest.fixture(scope="module", params=[PLAIN, IN_PARTS], ids=["text", "parts"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"), request.param)


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": content, **more}]}


def text(content: str, kind: str = "text", **more: Any) -> dict[str, Any]:
    return {"type": kind, "text": content, **more}


@pytest.mark.parametrize(
    "content",
    [
        "It is 4.",
        [text("It is 4.")],
        [text("It is "), text("4.")],
        ["It is ", "4."],
        [text("It is 4.", "output_text", annotations=[])],
        [text("It is", "input_text"), " 4."],
        [{"text": "It is 4."}],
        [text("It is 4.", cache_control={"type": "ephemeral"})],
        [text("It is 4.", image_url=None)],
        [text(""), text("It is 4.")],
    ],
)
def test_text_is_the_content(teacher: Teacher, content: Any) -> None:
    assert labeled(teacher, chat(content)) == ["It is 4.<|im_end|>"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (4, "message 1 (assistant) has a number as its content, not text"),
        (4.5, "has a number"),
        (True, "has a boolean"),
        ({"answer": 4}, "has an object"),
        ([text("It is"), {"type": "image"}], "has part 1 of type 'image'; only text"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "part 0 of type 'image_url'"),
        ([{"type": "input_audio", "input_audio": {}}], "part 0 of type 'input_audio'"),
        ([{"type": "tool_use", "name": "now", "input": {}}], "part 0 of type 'tool_use'"),
        ([{"type": "refusal", "refusal": "no"}], "part 0 of type 'refusal'"),
        ([{"inline_data": {}}], "part 0 of type with the keys 'inline_data'"),
        ([4], "part 0, a number"),
        ([["x"]], "part 0, a list"),
        ([text("x"), {"type": "text", "text": 4}], "part 1 of type 'text'"),
    ],
)
def test_anything_else_is_refused_by_name(teacher: Teacher, content: Any, name: str) -> None:
    assert name in reason(teacher, chat(content))


def test_questions_are_checked_too(teacher: Teacher) -> None:
    record = {"messages": [{"role": "user", "content": [{"type": "video"}]}]}
    assert "message 0 (user) has part 0 of type 'video'" in reason(teacher, record, mode="generate")


def test_thinking_in_parts_gets_the_templates_key(tmp_path: Path) -> None:
    thought = "{% if m.role == 'assistant' %}{{ '<think>' + m.reasoning_content + '</think>' }}"
    teacher = make_teacher(tmp_path, PLAIN.replace(START, START + thought + "{% endif %}"))
    parts = [{"type": "thinking", "thinking": "two and two", "signature": "x"}, text("4")]
    assert labeled(teacher, chat(parts)) == ["<think>two and two</think>4<|im_end|>"]


def test_a_tools_object_is_written_or_refused(tmp_path: Path) -> None:
    result = {"role": "tool", "content": {"day": 2}}
    messages = [ASKED, result, {"role": "assistant", "content": "2"}]
    written = PLAIN.replace(
        "m.content | trim", "(m.content | tojson) if m.content is mapping else m.content"
    )
    teacher = make_teacher(tmp_path / "written", written)
    assert labeled(teacher, {"messages": messages}) == ["2<|im_end|>"]
    teacher = make_teacher(tmp_path / "printed", PLAIN)
    assert "in Python's form" in reason(teacher, {"messages": messages})
