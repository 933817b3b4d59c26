"""Thinking is told from the answer by the template's own marks, and can be dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from tests.labeler.chat_templates import IM, STYLES, Style, make_chat_teacher

USER = {"role": "user", "content": "What is 2+2?"}
HARMONY = """
{%- for m in messages %}{% if m.role == 'assistant' %}
{%- if loop.last and m.thinking %}
{{- '<|im_start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|im_end|>' }}{% endif %}
{%- if m.tool_calls %}
{{- '<|im_start|>assistant to=functions.' + m.tool_calls[0].function.name }}
{{- '<|channel|>commentary json<|message|>' + (m.tool_calls[0].function.arguments | tojson) }}
{{- '<|call|>' }}
{%- else %}
{{- '<|im_start|>assistant<|channel|>final<|message|>' + m.content + '<|im_end|>' }}{% endif %}
{%- else %}{{ '<|im_start|>' + m.role + '<|message|>' + m.content + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""
CHANNELS = (*IM, "<|channel|>", "<|message|>", "<|call|>")


def tagged(before: str, after: str) -> str:
    """Return a template that writes thinking between two marks."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        f"{{% if m.thinking %}}{{{{ {before!r} + m.thinking + {after!r} }}}}{{% endif %}}"
        "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


Make = Callable[..., Teacher]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(template: str = STYLES["chatml"].template, tokens: tuple[str, ...] = IM) -> Teacher:
        style = Style(template=template, tokens=tokens)
        return open_teacher(make_chat_teacher(tmp_path, style), max_length=1024)

    return made


def row(teacher: Teacher, answer: dict[str, Any] | str, **changes: Any) -> Sequence | Reject:
    answer = {"content": answer} if isinstance(answer, str) else answer
    config = LabelConfig(model=teacher.path, out=teacher.path, **changes)
    columns = {"messages": [USER, {"role": "assistant"} | answer]}
    (found,) = render([Record(id="0", source="f", columns=columns)], teacher, config)
    return found


def parts(teacher: Teacher, found: Sequence | Reject) -> list[tuple[str, str]]:
    assert isinstance(found, Sequence), found
    decode = teacher.tokenizer.decode
    return [(s.kind, decode(found.input_ids[s.start : s.stop])) for s in found.spans]


END = "It is 4.<|im_end|>"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("<think>so</think>\nIt is 4.", [("thinking", "<think>so</think>\n"), ("answer", END)]),
        ("\n<think>so</think>\nIt is 4.", [("thinking", "\n<think>so</think>\n"), ("answer", END)]),
        (" \t<think>so</think>It is 4.", [("thinking", " \t<think>so</think>"), ("answer", END)]),
        ("\n\n[THINK]so[/THINK]It is 4.", [("thinking", "\n\n[THINK]so[/THINK]"), ("answer", END)]),
        ("\n<think></think>\nIt is 4.", [("thinking", "\n<think></think>\n"), ("answer", END)]),
        (
            "<think>\n\n</think>\n\nIt is 4.",
            [("thinking", "<think>\n\n</think>\n\n"), ("answer", END)],
        ),
        (
            "<think>a</think> \n<think>b</think>\nIt is 4.",
            [
                ("thinking", "<think>a</think>"),
                ("thinking", " \n"),
                ("thinking", "<think>b</think>\n"),
                ("answer", END),
            ],
        ),
        (
            "<think>a</think>so <think>b</think>It is 4.",
            [
                ("thinking", "<think>a</think>"),
                ("answer", "so "),
                ("thinking", "<think>b</think>"),
                ("answer", END),
            ],
        ),
        ("\n<think>so on", [("thinking", "\n<think>so on<|im_end|>")]),
        ("It is <thought>4", [("answer", "It is <thought>4<|im_end|>")]),
        ("<thought>a</thought>b", [("answer", "<thought>a</thought>b<|im_end|>")]),
    ],
)
def test_thinking_in_the_content(make: Make, content: str, wanted: list[tuple[str, str]]) -> None:
    teacher = make()
    found = parts(teacher, row(teacher, content))
    merged: list[tuple[str, str]] = []
    for kind, text in found:  # spans of one kind may touch
        merged.append((kind, text))
    assert _joined(merged) == _joined(wanted)


def _joined(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join neighbors of one kind."""
    joined: list[tuple[str, str]] = []
    for kind, text in found:
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


@pytest.mark.parametrize(
    "content",
    [
        "\n<think>so</think>\nIt is 4.",
        "<think>so</think>\n\nIt is 4.",
        "[THINK]so[/THINK]It is 4.",
        "<think></think>It is 4.",
        "<think>a</think><think>b</think>It is 4.",
    ],
)
def test_thinking_in_the_content_is_dropped(make: Make, content: str) -> None:
    teacher = make()
    found = row(teacher, content, student_drop=("thinking",))
    assert parts(teacher, found) == [("answer", END)]
    assert isinstance(found, Sequence)
    assert found.student_input_ids is not None
    assert teacher.tokenizer.decode(found.student_input_ids).endswith(f"assistant\n{END}\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>", "</think>\n"),
        ("\n<think>", "</think>\n"),
        ("<thinking>", "</thinking>"),
        ("<thought>\n", "\n</thought>\n"),
        ("<seed:think>", "</seed:think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<inner voice>", "</inner voice>"),  # nobody's: told by rendering without it
        ("Thoughts: ", "\nAnswer: "),
    ],
)
def test_marks_that_the_template_defines(make: Make, before: str, after: str) -> None:
    teacher = make(tagged(before, after))
    answer = {"content": "It is 4.", "thinking": "two and two"}
    wanted = [("thinking", f"{before}two and two{after}"), ("answer", END)]
    assert _joined(parts(teacher, row(teacher, answer))) == wanted
    dropped = row(teacher, answer, student_drop=("thinking",))
    assert parts(teacher, dropped) == [("answer", END)]
    assert isinstance(dropped, Sequence)
    assert "two and two" not in teacher.tokenizer.decode(dropped.student_input_ids or [])


def test_channels(make: Make) -> None:
    teacher = make(HARMONY, CHANNELS)
    answer = {"content": "4", "thinking": "two and two"}
    final = ("answer", "<|channel|>final<|message|>4<|im_end|>")
    analysis = "<|channel|>analysis<|message|>two and two<|im_end|><|im_start|>assistant"
    assert parts(teacher, row(teacher, answer)) == [("thinking", analysis), final]
    dropped = row(teacher, answer, student_drop=("thinking",))
    assert parts(teacher, dropped) == [final]
    assert isinstance(dropped, Sequence)
    seen = teacher.tokenizer.decode(dropped.student_input_ids or [])
    assert seen.endswith("<|im_end|><|im_start|>assistant<|channel|>final<|message|>4<|im_end|>")
    assert parts(teacher, row(teacher, "4")) == [final]


def test_a_call_in_a_channel(make: Make) -> None:
    teacher = make(HARMONY, CHANNELS)
    call = {"type": "function", "function": {"name": "now", "arguments": {"day": 2}}}
    answer = {"content": "", "thinking": "look", "tool_calls": [call]}
    wanted = [
        ("thinking", "<|channel|>analysis<|message|>look<|im_end|><|im_start|>assistant"),
        ("tool_call", ' to=functions.now<|channel|>commentary json<|message|>{"day": 2}<|call|>'),
    ]
    assert parts(teacher, row(teacher, answer)) == wanted
    assert parts(teacher, row(teacher, answer, student_drop=("thinking",))) == wanted[1:]


def test_channels_in_the_content(make: Make) -> None:
    """Raw generations of a model with channels, under a template that writes the content as is."""
    teacher = make(tokens=CHANNELS)
    head = "<|channel|>analysis<|message|>so<|im_end|><|im_start|>assistant"
    final = "<|channel|>final<|message|>4"
    found = row(teacher, head + final)
    assert parts(teacher, found) == [("thinking", head), ("answer", f"{final}<|im_end|>")]
    dropped = row(teacher, head + final, student_drop=("thinking",))
    assert parts(teacher, dropped) == [("answer", f"{final}<|im_end|>")]


def test_channels_of_another_model_are_text(make: Make) -> None:
    teacher = make()
    text = "<|channel|>analysis<|message|>so"
    assert parts(teacher, row(teacher, text)) == [("answer", f"{text}<|im_end|>")]


def test_thinking_that_a_prompt_opened(make: Make) -> None:
    """The closing tag alone ends it, where the tokenizer or the template has that tag."""
    answer = "so\n</think>\n\nIt is 4."
    teacher = make(tokens=(*IM, "<think>", "</think>"))
    wanted = [("thinking", "so\n</think>\n\n"), ("answer", END)]
    assert parts(teacher, row(teacher, answer)) == wanted
    dropped = row(teacher, answer, student_drop=("thinking",))
    assert parts(teacher, dropped) == [("answer", END)]


def test_thinking_that_cannot_be_told_from_the_answer_is_refused(make: Make) -> None:
    """The template writes something else where there is no thinking, so nothing separates it."""
    template = tagged("Thoughts: ", " Answer: ").replace(
        "{% endif %}{{ m.c",
        "{% elif m.role == 'assistant' %}{{ 'No thoughts at all. ' }}{% endif %}{{ m.c",
    )
    teacher = make(template)
    found = row(teacher, {"content": "It is 4.", "thinking": "two"})
    assert isinstance(found, Reject)
    assert (
        "writes the thinking of message 1 so that it cannot be told from the answer" in found.reason
    )
