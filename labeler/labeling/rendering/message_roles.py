"""Keys and roles of messages by other names: ShareGPT's, and those of other data sets."""

from __future__ import annotations

from typing import Any

from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.spans import BadRecord

Message = dict[str, Any]
ASSISTANT = "assistant"
ROLE_KEYS, CONTENT_KEYS = ("from",), ("value", "text", "parts")
"""Other keys of role and content: ShareGPT's, Open Assistant's, Gemini's."""
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
USERS = {"human": "user", "prompter": "user"}
"""Roles that are the user's beside an assistant too: no chat template knows them."""


def read_keys(message: object, column: str, names: ColumnNames) -> Message:
    """Return a message with its role and content under these names.

    The keys are those of `--role-key` and `--content-key`, or else known ones of other data sets.

    Raises:
        BadRecord: it is not an object with a role.
    """
    role = None
    if isinstance(message, dict):
        roles = (names.role_key, *ROLE_KEYS)
        role = next((key for key in roles if isinstance(message.get(key), str)), None)
    if not isinstance(message, dict) or role is None:
        raise BadRecord(
            f"a message in column {column!r} is not an object with a role: {message!r:.80}"
        )
    contents = (names.content_key, *CONTENT_KEYS)
    content = next((key for key in contents if key in message), None)
    if (role, content) == ("role", "content"):
        return message
    named = {"role": message[role]}
    if content is not None:
        named["content"] = message[content]
    return named | {k: v for k, v in message.items() if k not in (role, content, *named)}


def rename_roles(messages: list[Message], names: ColumnNames) -> list[Message]:
    """Return messages with the roles that templates know.

    `--roles` decides; most other known names are changed only if no message is the assistant's.
    """
    has_assistant = any(message["role"] == ASSISTANT for message in messages)
    roles = (USERS if has_assistant else ROLES) | names.roles

    def renamed(role: str) -> str:
        return roles.get(role, roles.get(role.strip().lower(), role))

    return [message | {"role": renamed(message["role"])} for message in messages]
