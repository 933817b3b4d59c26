"""A part of a message that the template leaves out makes the record a reject that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.chat import chat_tokens
from labeler.labeling.rendering.messages import read_chat
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.teacher.teacher import open_teacher
from tests.labeler.chat_templates import IM, STYLES, Style, make_chat_teacher

PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def chatml(body: str) -> Style:
    """Return a style that writes `body` for a message `m`."""
    loop = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}" + body
    return Style(template=loop + "{{ '<|im_end|>\\n' }}{% endfor %}" + PROMPT, tokens=IM)


TRIM = chatml("{{ m.content | trim }}")
WITH_CALLS = chatml(
    "{{ m.content | trim }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
)
CALLS_ALONE = chatml(
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}"
)
FIRST_CALL = chatml("{{ m.content or '' }}{{ (m.tool_calls or [{'function': ''}])[0].function }}")
NAMES = chatml(
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}"
)
CUT = chatml("{{ m.content[:5] }}")
LAST_THOUGHT = chatml(
    "{{ '<think>' + m.thinking + '</think>' if m.thinking and loop.last }}{{ m.content }}"
)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calls(content: str | None, *called: dict[str, Any]) -> dict[str, Any]:
    return {"content": content, "tool_calls": list(called)}


def labeled(path: Path, style: Style, *messages: dict[str, Any], **changes: Any) -> list[str]:
    teacher = open_teacher(make_chat_teacher(path, style), max_length=1024)
    config = LabelConfig(model=path, out=path, **changes)
    chat = [m if "role" in m else m | {"role": "assistant"} for m in messages]
    tokens = chat_tokens(
        teacher,
        read_chat({"messages": chat}, config),
        config.template_arguments,
        spans=config.spans,
    )
    return [teacher.tokenizer.decode(tokens.ids[s.start : s.stop]) for s in tokens.spans]


USER = {"role": "user", "content": "the time?"}


@pytest.mark.parametrize(
    ("style", "answer", "part"),
    [
        (TRIM, calls(None, call("now")), r"tool call 1 \(now\)"),
        (TRIM, calls(None, call("on")), r"tool call 1 \(on\)"),  # two letters of None
        (TRIM, calls("It is", call("now")), r"tool call 1 \(now\)"),
        (CALLS_ALONE, calls("I look", call("now")), "content"),
        (CALLS_ALONE, calls("a", call("now", a=1)), "content"),  # it occurs in the call
        (FIRST_CALL, calls("", call("f"), call("now")), r"tool call 2 \(now\)"),
        (NAMES, calls(None, call("now", day=2)), r"argument 'day' of tool call 1 \(now\)"),
        (NAMES, calls(None, call("now", now=["x", 7])), r"argument 'now\[0\]' of tool call 1"),
        (CUT, {"content": "It is five"}, "content"),
        (TRIM, {"content": "5", "reasoning_content": "hm"}, "thinking"),
        (TRIM, {"content": "hm", "reasoning_content": "hm"}, "thinking"),
    ],
)
def test_the_reject_names_the_part_and_the_message(
    tmp_path: Path, style: Style, answer: dict[str, Any], part: str
) -> None:
    with pytest.raises(BadRecord, match=f"does not render the {part}.* of message 1; give a"):
        labeled(tmp_path, style, USER, answer)


@pytest.mark.parametrize("empty", ["{{ m.content | trim }}", "{{ m.content | tojson }}"])
def test_none_is_never_labeled(tmp_path: Path, empty: str) -> None:
    style = chatml(empty + "{% for c in m.tool_calls %}[{{ c.function.name }}]{% endfor %}")
    with pytest.raises(BadRecord, match="for the missing content of message 1; give the message"):
        labeled(tmp_path, style, USER, calls(None, call("now")))


@pytest.mark.parametrize(
    ("style", "answer", "wanted"),
    [
        (WITH_CALLS, calls("", call("now", day=2)), '{"name": "now", "arguments": {"day": 2}}'),
        (WITH_CALLS, calls("", call("f", x=[True, 'a"b\né'])), None),
        (CALLS_ALONE, calls(None, call("None", x=None)), None),
        (TRIM, {"content": "None"}, "None"),
        (TRIM, {"content": "  two\n\nlines "}, "two\n\nlines"),
        (TRIM, {"content": ""}, ""),
    ],
)
def test_what_the_template_renders_is_labeled(
    tmp_path: Path, style: Style, answer: dict[str, Any], wanted: str | None
) -> None:
    (text,) = labeled(tmp_path, style, USER, answer)
    assert wanted is None or text == f"{wanted}<|im_end|>"


def test_thinking_may_be_missing_from_history(tmp_path: Path) -> None:
    """A template that renders it for the last turn leaves it out of earlier ones by design."""
    thought = {"content": "a", "thinking": "hm"}
    found = labeled(tmp_path, LAST_THOUGHT, USER, thought, USER, {"content": "b", "thinking": "so"})
    assert found == ["a<|im_end|>", "<think>so</think>", "b<|im_end|>"]
    assert labeled(tmp_path, LAST_THOUGHT, USER, thought, USER) == ["a<|im_end|>"]


def test_no_thinking_leaves_it_out_on_purpose(tmp_path: Path) -> None:
    answer = {"content": "5", "reasoning_content": "hm"}
    assert labeled(tmp_path, TRIM, USER, answer, thinking=False) == ["5<|im_end|>"]


def test_only_labeled_turns_must_be_rendered(tmp_path: Path) -> None:
    chat = (USER, {"content": "It is five"}, USER, {"content": "4"})
    assert labeled(tmp_path, CUT, *chat, spans="completion") == ["4<|im_end|>"]
    with pytest.raises(BadRecord, match="content of message 1"):
        labeled(tmp_path, CUT, *chat)


@pytest.mark.parametrize("spans", ["turns", "everything"])
def test_other_roles_must_be_rendered_if_they_are_labeled(tmp_path: Path, spans: str) -> None:
    deaf = chatml("{{ m.content if m.role != 'system' }}")
    system = {"role": "system", "content": "be brief"}
    with pytest.raises(BadRecord, match="does not render the content of message 0"):
        labeled(tmp_path, deaf, system, USER, {"content": "5"}, spans=spans)
    assert labeled(tmp_path, deaf, system, USER, {"content": "5"}) == ["5<|im_end|>"]


def test_a_result_inside_the_assistants_turn_is_not_labeled(tmp_path: Path) -> None:
    """Some templates write a tool's result into the turn of the call."""
    body = (
        "{% for m in messages if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
        "{{ '<result>' + messages[-1].content }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    )
    style = Style(template=body + PROMPT, tokens=STYLES["chatml"].tokens)
    result = {"role": "tool", "content": "12:30"}
    with pytest.raises(
        BadRecord, match=r"puts message 2 into an assistant's turn|cannot be located"
    ):
        labeled(tmp_path, style, USER, calls(None, call("now")), result)
