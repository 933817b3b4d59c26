"""Detect the shape of a record, and read the chats of data sets that are not lists of messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.message_roles import ASSISTANT
from labeler.labeling.rendering.messages import Chat, Message, read_messages, with_tools
from labeler.labeling.rendering.spans import BadRecord

Shape = Literal["ids", "messages", "text", "completion", "instruction"]
OTHER_MESSAGES = ("conversations", "conversation")
"""Columns of messages in other data sets, read if a record has nothing else."""
INSTRUCTION, INPUT, OUTPUT, SYSTEM, HISTORY = "instruction", "input", "output", "system", "history"
"""Columns of Alpaca, and two that LLaMA-Factory adds."""


@dataclass(frozen=True, kw_only=True)
class FoundChat:
    """A record's chat for the teacher and, where a column changes it, for the student.

    Attributes:
        chat: the teacher's.
        student: the student's, before parts are dropped.
        columns: the columns that were read.
        shape: the record's shape, for people.
    """

    chat: Chat
    student: Chat
    columns: tuple[str, ...]
    shape: str


def find_shape(columns: Columns, config: LabelConfig) -> Shape:
    """Return the shape of a record: `--shape`, or the first one whose columns it has.

    Raises:
        BadRecord: it has the columns of none, or not those of `--shape`.
    """
    generate = config.mode == "generate"
    needs: dict[Shape, tuple[str, ...]] = {
        "ids": (config.ids_column,),
        "messages": (config.messages_column,),
        "text": (config.text_column,),
        "completion": (config.prompt_column, *(() if generate else (config.completion_column,))),
        "instruction": (INSTRUCTION, *(() if generate else (OUTPUT,))),
    }
    if generate:
        del needs["text"]
    has = {shape: _has(columns, *names) for shape, names in needs.items()}
    if config.shape != "auto":
        has = {shape: there and shape == config.shape for shape, there in has.items()}
    for shape, there in has.items():
        if there and shape != "instruction":
            return shape
    if config.shape in ("auto", "messages") and _other_messages(columns):
        return "messages"
    if has["instruction"]:
        return "instruction"
    names = ", ".join(map(repr, columns)) or "none"
    if config.shape != "auto":
        wanted = " and ".join(map(repr, needs.get(config.shape, ("a document",))))
        raise BadRecord(f"--shape {config.shape} needs {wanted}; its columns are {names}")
    if generate:
        raise BadRecord(
            f"it has neither {config.prompt_column!r} nor {config.messages_column!r} nor "
            f"{config.ids_column!r}; its columns are {names}"
        )
    raise BadRecord(
        f"it has neither a column {config.text_column!r} nor both {config.prompt_column!r} and "
        f"{config.completion_column!r}, nor {config.messages_column!r} nor "
        f"{config.ids_column!r}; its columns are {names}"
    )


def find_chat(columns: Columns, config: LabelConfig, shape: Shape) -> FoundChat | None:
    """Return the chat of a record; None if it is plain text, or token ids.

    Raises:
        BadRecord: a column holds something that is not a chat.
    """
    if shape == "messages":
        return _messages(columns, config)
    if shape == "instruction":
        return _instruction(columns, config)
    generate = config.mode == "generate"
    names = [config.prompt_column, *([] if generate else [config.completion_column])]
    values = [columns[name] for name in names] if shape == "completion" else []
    if any(isinstance(value, list) for value in values) or (
        values and config.chat_prompts and not generate
    ):
        return _completion(columns, config)
    return None


def _has(columns: Columns, *names: str) -> bool:
    return all(columns.get(name) is not None for name in names)


def _other_messages(columns: Columns) -> str | None:
    return next((name for name in OTHER_MESSAGES if columns.get(name) is not None), None)


def _messages(columns: Columns, config: LabelConfig) -> FoundChat:
    column = config.messages_column
    if columns.get(column) is None:
        column = _other_messages(columns) or column
    messages = read_messages(columns, column, config)
    sharegpt = _is_sharegpt(columns[column], config)
    used: tuple[str, ...] = (column,)
    if sharegpt and messages[0]["role"] != "system" and isinstance(columns.get(SYSTEM), str):
        messages = [{"role": "system", "content": columns[SYSTEM]}, *messages]
        used += (SYSTEM,)
    shape = "ShareGPT messages (from, value)" if sharegpt else "messages"
    return _found(Chat(messages=messages), None, columns, config, used, shape)


def _is_sharegpt(messages: object, names: ColumnNames) -> bool:
    if isinstance(messages, str):
        return '"from"' in messages and f'"{names.role_key}"' not in messages
    first = messages[0] if isinstance(messages, list) else None
    return isinstance(first, dict) and "from" in first and not first.get(names.role_key)


def _completion(columns: Columns, config: LabelConfig) -> FoundChat:
    """Read prompt and completion, each as messages or text; the prompt has no labels."""
    prompt = _turns(columns, config.prompt_column, "user", config)
    answer: list[Message] = []
    if config.mode == "score":
        answer = _turns(columns, config.completion_column, ASSISTANT, config)
        if not any(message["role"] == ASSISTANT for message in answer):
            raise BadRecord(f"column {config.completion_column!r} has no assistant's message")
    other = None
    if columns.get(config.student_prompt_column) is not None:
        other = _turns(columns, config.student_prompt_column, "user", config)
    if config.spans in ("assistant", "completion"):
        prompt, other = _unlabeled(prompt), other and _unlabeled(other)
    used = [config.prompt_column, config.student_prompt_column]
    if answer:
        used.append(config.completion_column)
    chat = Chat(messages=prompt + answer)
    student = None if other is None else Chat(messages=other + answer)
    return _found(chat, student, columns, config, tuple(used), "prompt and completion as a chat")


def _turns(columns: Columns, name: str, role: str, names: ColumnNames) -> list[Message]:
    value = columns[name]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return read_messages(columns, name, names)


def _unlabeled(messages: list[Message]) -> list[Message]:
    return [m | {"weight": 0} if m["role"] == ASSISTANT else m for m in messages]


def _instruction(columns: Columns, config: LabelConfig) -> FoundChat:
    """Read Alpaca's columns: the question is instruction and input on two lines."""
    question = [t for t in (_text(columns, name) for name in (INSTRUCTION, INPUT)) if t]
    messages: list[Message] = []
    if system := _text(columns, SYSTEM):
        messages.append({"role": "system", "content": system})
    for pair in _history(columns):
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": ASSISTANT, "content": pair[1]})
    messages.append({"role": "user", "content": "\n".join(question)})
    used: tuple[str, ...] = (INSTRUCTION, INPUT, SYSTEM, HISTORY)
    if config.mode == "score":
        answer = _text(columns, OUTPUT)
        if not answer:
            raise BadRecord(f"column {OUTPUT!r} is empty")
        messages.append({"role": ASSISTANT, "content": answer})
        used += (OUTPUT,)
    chat = Chat(messages=messages)
    return _found(chat, None, columns, config, used, "instruction, input and output")


def _history(columns: Columns) -> list[list[str]]:
    pairs: Any = columns.get(HISTORY) or []
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
    ):
        raise BadRecord(f"column {HISTORY!r} is not a list of [question, answer]")
    return pairs


def _text(columns: Columns, name: str) -> str:
    value = columns.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not text")
    return value or ""


def _found(
    chat: Chat,
    student: Chat | None,
    columns: Columns,
    names: ColumnNames,
    used: tuple[str, ...],
    shape: str,
) -> FoundChat:
    with_all = with_tools(chat.messages, columns, names)
    others = (names.tools_column, names.documents_column, names.student_messages_column)
    return FoundChat(
        chat=with_all,
        student=with_all if student is None else replace(with_all, messages=student.messages),
        columns=(*used, *others),
        shape=shape,
    )
