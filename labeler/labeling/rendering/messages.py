"""Read messages, tools and documents from a record's columns, as chat templates expect them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.inputs.json_items import read_value
from labeler.labeling.inputs.read_records import ArrowColumns
from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.message_content import THINKING_KEYS, read_content
from labeler.labeling.rendering.message_roles import (
    ASSISTANT,
    SHAREGPT_CALL,
    read_keys,
    rename_roles,
)
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.rendering.tool_calls import LEGACY, read_calls, read_legacy_call

Message = dict[str, Any]
"""A message as a chat template reads it: `role`, `content` and whatever else it knows."""
AS_GIVEN = ("arguments", "parameters")
"""Keys of calls and tools whose nulls are values, where the file tells them from missing keys."""
WEIGHT_KEYS, FLAG_KEYS = ("weight", "train"), ("training", "loss")
"""Keys of a message that say whether it is trained on: 0 or false leaves it without labels. The
latter two count only if they are true or false."""

__all__ = ["ASSISTANT", "Chat", "Message", "is_labeled", "read_chat", "read_list", "read_messages"]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The input of a chat template; tools are JSON schemas, or whatever else the template takes."""

    messages: list[Message]
    tools: list[Any] | None = None
    documents: list[dict[str, Any]] | None = None


def read_chat(columns: Columns, names: ColumnNames) -> Chat:
    """Return the chat of a record with messages.

    Raises:
        BadRecord: a column holds something that no template can read.
    """
    return with_tools(read_messages(columns, names.messages_column, names), columns, names)


def with_tools(messages: list[Message], columns: Columns, names: ColumnNames) -> Chat:
    """Return the chat of messages that were read, with the record's tools and documents.

    Raises:
        BadRecord: a column holds something that no template can read.
    """
    return Chat(
        messages=messages,
        tools=read_list(columns, names.tools_column),
        documents=read_list(columns, names.documents_column),
    )


def read_messages(columns: Columns, name: str, names: ColumnNames) -> list[Message]:
    """Return the messages of a column: a list of {role, content, ...}, or that list as JSON text.

    Keys and roles of other data sets get the names that templates know. Arrow gives every struct
    all keys of the column, null if a message lacks them: such keys are left out.

    Raises:
        BadRecord: the column holds something else.
    """
    messages = read_list(columns, name)
    if not messages:
        raise BadRecord(f"column {name!r} has no messages")
    renamed = rename_roles([read_keys(m, name, names) for m in messages], names)
    return [_message(m, f"message {i}") for i, m in enumerate(renamed)]


def is_labeled(message: Message) -> bool:
    """Return whether a turn may have labels: not with weight 0 or `train` false."""
    flags = [message[key] for key in FLAG_KEYS if isinstance(message.get(key), bool)]
    return all([*flags, *(message.get(key, True) for key in WEIGHT_KEYS)])


def _message(message: Message, where: str) -> Message:
    clean = dict(message)
    where = f"{where} ({clean['role']})"
    calls = read_calls(clean["tool_calls"], where) if clean.get("tool_calls") else []
    if clean.get(LEGACY) and not calls:
        calls = [read_legacy_call(clean[LEGACY], where)]
    if clean["role"] == SHAREGPT_CALL:
        calls = read_calls(clean.pop("content", None) or "[]", where)
        clean["role"] = ASSISTANT
    if calls:
        clean["tool_calls"] = calls
    else:
        clean.pop("tool_calls", None)
    for key in WEIGHT_KEYS:
        if key in clean and not (isinstance(clean[key], (int, float)) and clean[key] in (0, 1)):
            raise BadRecord(
                f"{where} has {key} {clean[key]!r:.40}; a turn is labeled (1) or not (0)"
            )
    # Templates recognize a turn of only tool calls by its null content; elsewhere they print it.
    content = clean.setdefault("content", None if calls else "")
    if content == "" and "content" not in message and not clean.keys() & set(THINKING_KEYS):
        raise BadRecord(f"{where} has no content; its keys are {', '.join(map(repr, message))}")
    if content is not None:
        clean["content"] = read_content(content, clean["role"], where)
    return clean


def read_list(columns: Columns, name: str) -> list[Any] | None:
    """Return the list in a column, or in its JSON text, without null keys; None if it is empty.

    Raises:
        BadRecord: the column holds something else.
    """
    value, arrow = columns.get(name), isinstance(columns, ArrowColumns)
    if isinstance(value, str):
        try:
            value, arrow = read_value(value), False
        except ValueError as error:
            raise BadRecord(f"column {name!r} is text, but not JSON: {error}") from error
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not a list")
    as_given = () if arrow else AS_GIVEN
    return [_without_nulls(item, as_given) for item in value]


def _without_nulls(value: object, as_given: tuple[str, ...]) -> object:
    if isinstance(value, dict):
        return {
            k: v if k in as_given else _without_nulls(v, as_given)
            for k, v in value.items()
            if v is not None
        }
    if isinstance(value, list):
        return [_without_nulls(item, as_given) for item in value]
    return value
