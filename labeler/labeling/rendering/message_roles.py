"""Keys and roles of messages by other names: ShareGPT's, and those of other data sets."""

from __future__ import annotations

from typing import Any

from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.spans import BadRecord

Message = dict[str, Any]
ASSISTANT = "assistant"
SHAREGPT = ("from", "value")
"""Keys of ShareGPT's messages."""
SHAREGPT_CALL = "function_call"
"""Role of a ShareGPT message whose text is a tool call as JSON."""
ROLES = {
    "system": "system",
    "user": "user",
    "assistant": ASSISTANT,
    "tool": "tool",
    "human": "user",
    "prompter": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "chatbot": ASSISTANT,
    "ai": ASSISTANT,
    "model": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_call": SHAREGPT_CALL,
}
"""Roles by other names or in other letters, where no message has the role assistant."""


def read_keys(message: object, column: str, names: ColumnNames) -> Message:
    """Return a message with its role and content under these names.

    The keys are those of `--role-key` and `--content-key`, or else ShareGPT's.

    Raises:
        BadRecord: it is not an object with a role.
    """
    if isinstance(message, dict):
        for role, content in ((names.role_key, names.content_key), SHAREGPT):
            if isinstance(message.get(role), str):
                other = (role, content)
                rest = {k: v for k, v in message.items() if k not in other}
                if other == ("role", "content"):
                    return message
                named = {"role": message[role]}
                return named | ({"content": message[content]} if content in message else {}) | rest
    raise BadRecord(f"a message in column {column!r} is not an object with a role: {message!r:.80}")


def rename_roles(messages: list[Message], names: ColumnNames) -> list[Message]:
    """Return messages with the roles that templates know.

    `--roles` decides; other known names are changed only if no message is the assistant's.
    """
    roles = names.roles
    if not any(message["role"] == ASSISTANT for message in messages):
        roles = ROLES | roles
    if not roles:
        return messages

    def renamed(role: str) -> str:
        return roles.get(role, roles.get(role.strip().lower(), role))

    return [message | {"role": renamed(message["role"])} for message in messages]
