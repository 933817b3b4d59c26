"""Check the content of a message: text, parts of text, or nothing; anything else has a name."""

from __future__ import annotations

from typing import Any

from labeler.labeling.rendering.spans import BadRecord

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of parts that are text, by OpenAI's two interfaces."""
THINKING = "thinking"
THINKING_KEYS = ("reasoning_content", "reasoning", THINKING)
"""Keys of an assistant's thinking: of most templates, of vLLM, and of gpt-oss."""
RESULT_ROLES = ("tool", "ipython", "function", "observation")
"""Roles whose content may be an object, if the template writes objects."""
NAMES = {bool: "a boolean", int: "a number", float: "a number", dict: "an object"}


def read_content(content: object, role: str, where: str) -> object:
    """Return the content of a message as templates read it.

    Parts become {type: text, text} or {type: thinking, thinking}; other keys of theirs stay.

    Args:
        content: the message's content; not None.
        role: its role.
        where: the message, for errors.

    Raises:
        BadRecord: it is neither text nor a list of text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        if role in RESULT_ROLES and not any(isinstance(p, dict) and "type" in p for p in content):
            return content
        return [_part(part, f"{where} has part {i}") for i, part in enumerate(content)]
    if isinstance(content, dict) and role in RESULT_ROLES:
        return content
    kind = NAMES.get(type(content), f"a {type(content).__name__}")
    raise BadRecord(f"{where} has {kind} as its content, not text")


def _part(part: object, where: str) -> object:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        kind = NAMES.get(type(part), f"a {type(part).__name__}")
        raise BadRecord(f"{where}, {kind}, not text")
    named = part.get("type", "text" if set(part) == {"text"} else None)
    if named in TEXT_PARTS and isinstance(part.get("text"), str):
        return part if part.get("type") == "text" else part | {"type": "text"}
    if named == THINKING and isinstance(part.get(THINKING), (str, list)):
        return part
    shown = repr(named) if named else f"with the keys {', '.join(map(repr, part)) or 'none'}"
    raise BadRecord(f"{where} of type {shown}; only text can be labeled")


def join_text(parts: list[Any]) -> str:
    """Return the text of a list of parts, without anything between them."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def join_thinking(parts: list[Any]) -> str:
    """Return the thinking of a list of parts, each of which may hold parts of its own."""
    thoughts = (part[THINKING] for part in parts if part["type"] == THINKING)
    return "".join(t if isinstance(t, str) else join_text(_texts(t)) for t in thoughts)


def _texts(parts: list[Any]) -> list[Any]:
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "text"]
