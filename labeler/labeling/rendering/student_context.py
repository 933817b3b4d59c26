"""The student's context, where it differs from the teacher's, and the labels that both share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.message_content import THINKING_KEYS
from labeler.labeling.rendering.messages import ASSISTANT, Chat, Message, read_messages
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.turn_kinds import TurnKinds

SYSTEM_ROLES = ("system", "developer")


def student_chat(
    chat: Chat, columns: Columns, *, names: ColumnNames, drop: Collection[str], kinds: TurnKinds
) -> Chat | None:
    """Return the chat that the student sees; None if it is the teacher's.

    Args:
        chat: the teacher's chat.
        columns: the record.
        names: the columns; one may hold the student's messages.
        drop: parts that the student does not see (`--student-drop`).
        kinds: tells thinking from the answer.

    Raises:
        BadRecord: the column holds no messages, or no message is left.
    """
    messages = chat.messages
    if columns.get(names.student_messages_column) is not None:
        messages = read_messages(columns, names.student_messages_column, names)
    if "system" in drop:
        messages = [m for m in messages if m["role"] not in SYSTEM_ROLES]
    if "thinking" in drop:
        messages = [without_thinking(m, kinds) for m in messages]
    if not messages:
        raise BadRecord("no message is left for the student to see")
    student = Chat(
        messages=messages,
        tools=None if "tools" in drop else chat.tools,
        documents=None if "documents" in drop else chat.documents,
    )
    return None if student == chat else student


def without_thinking(message: Message, kinds: TurnKinds) -> Message:
    """Return an assistant's message without its thinking, and any other message as it is."""
    if message["role"] != ASSISTANT:
        return message
    kept = {name: value for name, value in message.items() if name not in THINKING_KEYS}
    content = kept["content"]
    if isinstance(content, str):
        kept["content"] = kinds.without_thinking(content)
    elif isinstance(content, list):
        kept["content"] = [
            part | {"text": kinds.without_thinking(part["text"])} if "text" in part else part
            for part in content
            if part.get("type") not in THINKING_KEYS
        ]
    return kept


def shows_thinking(chat: Chat, kinds: TurnKinds) -> bool:
    """Return whether a message of the chat contains an assistant's thinking."""
    return any(without_thinking(message, kinds) != message for message in chat.messages)


def pair_spans(
    teacher: Tokens, student: Tokens, *, hidden: frozenset[str] = frozenset()
) -> tuple[Tokens, Tokens]:
    """Return both sequences with only the spans that they share: same number, kinds and tokens.

    Spans of kind `prompt` are left out if they do not pair: these are the parts of a chat that a
    student's context changes.

    Args:
        teacher: the teacher's sequence.
        student: the student's sequence.
        hidden: kinds of spans to leave out.

    Raises:
        BadRecord: the spans do not pair.
    """
    problem = ""
    for without in (hidden, hidden | {"prompt"}):
        ours, theirs = _without(teacher, without), _without(student, without)
        problem = _difference(ours, theirs)
        if not problem:
            return ours, theirs
    raise BadRecord(f"the labeled spans of teacher and student differ: {problem}")


def _without(tokens: Tokens, kinds: frozenset[str]) -> Tokens:
    return replace(tokens, spans=tuple(s for s in tokens.spans if s.kind not in kinds))


def _difference(teacher: Tokens, student: Tokens) -> str:
    """Describe the first difference between the labeled spans; empty if there is none."""
    if not teacher.spans or len(teacher.spans) != len(student.spans):
        return (
            f"{len(teacher.spans)} labeled spans in the teacher's context, "
            f"{len(student.spans)} in the student's"
        )
    for number, (ours, theirs) in enumerate(zip(teacher.spans, student.spans)):
        labeled, seen = _tokens(teacher, ours), _tokens(student, theirs)
        if ours.kind != theirs.kind:
            return (
                f"span {number} has kind {ours.kind} for the teacher, {theirs.kind} for the student"
            )
        if labeled != seen:
            place = next((i for i, (a, b) in enumerate(zip(labeled, seen)) if a != b), -1)
            where = f"differ at token {place}" if place >= 0 else "have different lengths"
            lengths = f"{len(labeled)} and {len(seen)} tokens"
            return f"spans {number} ({ours.kind}) {where} ({lengths})"
    return ""


def _tokens(tokens: Tokens, span: Span) -> list[int]:
    return tokens.ids[span.start : span.stop]
