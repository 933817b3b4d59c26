"""Read messages, tools and documents from a record's columns, as chat templates expect them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.spans import BadRecord

Message = dict[str, Any]
"""A message as a chat template reads it: `role`, `content` and whatever else it knows."""
ASSISTANT = "assistant"


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
    return Chat(
        messages=read_messages(columns, names.messages_column),
        tools=read_list(columns, names.tools_column),
        documents=read_list(columns, names.documents_column),
    )


def read_messages(columns: Columns, name: str) -> list[Message]:
    """Return the messages of a column: a list of {role, content, ...}, or that list as JSON text.

    Parquet gives every struct all keys of the column, null if a message lacks them: such keys are
    left out. Arguments of tool calls that are JSON text become objects, as in servers before they
    apply a template.

    Raises:
        BadRecord: the column holds something else.
    """
    messages = read_list(columns, name)
    if not messages:
        raise BadRecord(f"column {name!r} has no messages")
    return [_message(message, name) for message in messages]


def _message(message: object, name: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRecord(
            f"a message in column {name!r} is not an object with a role: {message!r:.80}"
        )
    clean: Message = {k: _without_nulls(v) for k, v in message.items() if v is not None}
    calls = clean.get("tool_calls")
    if calls:
        clean["tool_calls"] = [_tool_call(call) for call in calls]
    else:
        clean.pop("tool_calls", None)
    # Templates recognize a turn of only tool calls by its null content; elsewhere they print it.
    clean.setdefault("content", None if calls else "")
    return clean


def _tool_call(call: object) -> object:
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        return call
    return call | {"function": function | {"arguments": arguments}}


def read_list(columns: Columns, name: str) -> list[Any] | None:
    """Return the list in a column, or in its JSON text, without null keys; None if it is empty.

    Raises:
        BadRecord: the column holds something else.
    """
    value = columns.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRecord(f"column {name!r} is text, but not JSON: {error}") from error
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not a list")
    return [_without_nulls(item) for item in value]


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
