"""What the student is to see where that is not what the teacher sees, and how labels carry over."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.messages import ASSISTANT, Chat, Message, read_messages
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens

SYSTEM_ROLES = ("system", "developer")
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
THINKING_TEXT = re.compile(r"(?:<think>.*?</think>|\[THINK\].*?\[/THINK\])\n*", re.DOTALL)


def student_chat(chat: Chat, columns: dict[str, Any], config: LabelConfig) -> Chat | None:
    """The chat as the student is to see it; None where that is the teacher's.

    Raises:
        BadRecord: `student_messages` holds no messages, or nothing is left.
    """
    messages = chat.messages
    if columns.get(config.student_messages_column) is not None:
        messages = read_messages(columns, config.student_messages_column)
    if "system" in config.student_drop:
        messages = [m for m in messages if m["role"] not in SYSTEM_ROLES]
    if "thinking" in config.student_drop:
        messages = [without_thinking(m) for m in messages]
    if not messages:
        raise BadRecord("no message is left for the student to see")
    student = Chat(
        messages=messages,
        tools=None if "tools" in config.student_drop else chat.tools,
        documents=None if "documents" in config.student_drop else chat.documents,
    )
    return None if student == chat else student


def without_thinking(message: Message) -> Message:
    """An assistant's message without what it thought; any other message as it is."""
    if message["role"] != ASSISTANT:
        return message
    kept = {name: value for name, value in message.items() if name not in THINKING_KEYS}
    content = kept["content"]
    if isinstance(content, str):
        kept["content"] = THINKING_TEXT.sub("", content)
    elif isinstance(content, list):
        kept["content"] = [part for part in content if part.get("type") not in THINKING_KEYS]
    return kept


def hides_thinking(student: Chat) -> bool:
    """Whether nothing that an assistant thought is in the student's chat."""
    return all(without_thinking(message) == message for message in student.messages)


def pair(
    teacher: Tokens, student: Tokens, *, hidden: frozenset[str] = frozenset()
) -> tuple[Tokens, Tokens]:
    """Both sequences with the spans that the student shares: as many, of equal lengths and tokens.

    Spans of the kinds in `hidden` are left out. Those of kind `prompt` are, too, where they do not
    pair: what others say is what a student's context changes.

    Raises:
        BadRecord: the spans do not pair.
    """
    problem = ""
    for without in (hidden, hidden | {"prompt"}):
        ours, theirs = _without(teacher, without), _without(student, without)
        problem = _difference(ours, theirs)
        if not problem:
            return ours, theirs
    raise BadRecord(f"the student's context does not have the teacher's labels: {problem}")


def _without(tokens: Tokens, kinds: frozenset[str]) -> Tokens:
    return replace(tokens, spans=tuple(s for s in tokens.spans if s.kind not in kinds))


def _difference(teacher: Tokens, student: Tokens) -> str:
    """The first thing in which the labeled stretches differ; empty where they are equal."""
    if not teacher.spans or len(teacher.spans) != len(student.spans):
        return f"{len(teacher.spans)} labeled stretches here, {len(student.spans)} there"
    for number, (ours, theirs) in enumerate(zip(teacher.spans, student.spans)):
        said, heard = _tokens(teacher, ours), _tokens(student, theirs)
        if ours.kind != theirs.kind:
            return f"stretch {number} is {ours.kind} here, {theirs.kind} there"
        if said != heard:
            place = next((i for i, (a, b) in enumerate(zip(said, heard)) if a != b), -1)
            where = f"differ at token {place}" if place >= 0 else "have different lengths"
            return f"stretches {number} ({ours.kind}) {where} ({len(said)} and {len(heard)} tokens)"
    return ""


def _tokens(tokens: Tokens, span: Span) -> list[int]:
    return tokens.ids[span.start : span.stop]
