"""Records through the reader and a small chat template to the labeled text, or to the reject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from tests.labeler.chat_templates import STYLES, Style, make_chat_teacher

TOKENS = STYLES["qwen"].tokens
END = "{{ '<|im_end|>\\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
START = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
PLAIN = START + "{{ m.content | trim }}" + END + ASK
"""A template that knows text alone."""
IN_PARTS = (
    START
    + "{% if m.content is string %}{{ m.content }}{% else %}"
    + "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    + END
    + ASK
)
"""A template that takes text and parts."""
CALLS = (
    START
    + "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    + "{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}"
    + END
    + ASK
)
"""A template that writes calls as JSON objects."""
TEXT_CALLS = CALLS.replace("(c.function | tojson)", "c.function.name + ' ' + c.function.arguments")
"""A template that takes arguments as text."""


def make_teacher(path: Path, template: str = PLAIN) -> Teacher:
    """Return a teacher with a template, without weights."""
    style = Style(template=template, tokens=TOKENS)
    return open_teacher(make_chat_teacher(path, style), max_length=1024)


def read(teacher: Teacher, columns: dict[str, Any], **settings: Any) -> Sequence:
    """Return a record's row.

    Raises:
        AssertionError: it is a reject.
    """
    row = _render(teacher, columns, settings)
    assert isinstance(row, Sequence), row.reason
    return row


def reason(teacher: Teacher, columns: dict[str, Any], **settings: Any) -> str:
    """Return why a record is a reject."""
    row = _render(teacher, columns, settings)
    assert isinstance(row, Reject), text_of(teacher, row)
    return row.reason


def labeled(teacher: Teacher, columns: dict[str, Any], **settings: Any) -> list[str]:
    """Return the labeled stretches of a record; kinds that meet are joined."""
    row = read(teacher, columns, **settings)
    pieces: list[str] = []
    done = -1
    for span in row.spans:
        piece = teacher.tokenizer.decode(row.input_ids[span.start : span.stop])
        if span.start == done:
            pieces[-1] += piece
        else:
            pieces.append(piece)
        done = span.stop
    return pieces


def text_of(teacher: Teacher, row: Sequence) -> str:
    """Return a row's whole text."""
    text: str = teacher.tokenizer.decode(row.input_ids)
    return text


def _render(
    teacher: Teacher, columns: dict[str, Any], settings: dict[str, Any]
) -> Sequence | Reject:
    defaults: dict[str, Any] = {"model": teacher.path, "out": teacher.path, "max_tokens": 8}
    config = LabelConfig(**(defaults | settings))
    (row,) = render([Record(id="r", source="f", columns=columns)], teacher, config)
    return row
