"""Check that a template renders every part of a message that is to be labeled.

A template is free to leave a part out: text beside a tool call, calls it does not know, thinking.
Its labels would then be missing without a word, or lie on the word None.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from labeler.labeling.inputs.json_items import read_value
from labeler.labeling.rendering.message_content import THINKING_KEYS
from labeler.labeling.rendering.messages import ASSISTANT, Message
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.rendering.turn_kinds import TurnKinds
from labeler.labeling.rendering.turns import (
    Conversation,
    is_content_rendered,
    render_through,
    shared_length,
    with_content,
)

SHORT = 12
"""Characters of a content that may occur in a turn by chance, beside calls or thinking."""
PYTHON_NONE = ("None", "null")
HINT = "give a template that does (--chat-template), or leave it out of the record"


def require_parts(
    chat: Conversation, index: int, turn: str, kinds: TurnKinds, *, thinks: bool
) -> None:
    """Refuse an assistant's message of which a part is not in its turn.

    Thinking may be missing from a turn in history, if the template renders it where the turn is the
    last one.

    Args:
        chat: the chat.
        index: the message.
        turn: its text.
        kinds: the template's patterns.
        thinks: the template is to render thinking (not with `--no-thinking`).

    Raises:
        BadRecord: names the part and the message.
    """
    message = chat.messages[index]
    turn = _without_end(turn, chat.ends)
    content = message_text(message)
    thoughts = [*_thoughts(message), *kinds.thoughts(content)] if thinks else []
    thoughts = list(filter(None, dict.fromkeys(map(_squeeze, thoughts))))
    if not message.get("tool_calls") and not thoughts and _squeeze(content) == _squeeze(turn):
        return
    for number, call in enumerate(message.get("tool_calls") or [], 1):
        function = call.get("function", call) if isinstance(call, dict) else {}
        _require_call(function, f"tool call {number}", index, turn)
    _refuse_none(chat, index, turn)
    left = _squeeze(turn)
    pieces = list(filter(None, map(_squeeze, kinds.thinking.split(content))))
    parts = [*((piece, "content") for piece in pieces), *((t, "thinking") for t in thoughts)]
    for part, name in sorted(parts, key=lambda part: len(part[0]), reverse=True):
        chance = name == "content" and len(part) < SHORT and len(left) > len(part)
        if part in left and not (chance and not is_content_rendered(chat, index)):
            left = left.replace(part, "\n", 1)
        elif name == "content" or part not in _squeeze(_only_last(chat, index)):
            raise _dropped(name, index)


def _only_last(chat: Conversation, index: int) -> str:
    """Return the text that the template writes only if the chat ends with message `index`."""
    ended = render_through(chat, index) or ""
    return ended[shared_length(ended, chat.text) :]


def require_others(chat: Conversation) -> None:
    """Refuse a chat whose other roles' content is not in the text (`--spans everything`).

    Raises:
        BadRecord: names the message.
    """
    whole = _squeeze(chat.text)
    for index, message in enumerate(chat.messages):
        content = _squeeze(message_text(message))
        if message["role"] != ASSISTANT and not _is_written(content, whole):
            raise _dropped("content", index)


def message_text(message: Message) -> str:
    """Return a message's content as text; of parts, the text; empty if it is something else."""
    content = message["content"]
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _refuse_none(chat: Conversation, index: int, turn: str) -> None:
    """Refuse a turn in which the template prints None for a content that is missing."""
    if chat.messages[index]["content"] is not None or not any(n in turn for n in PYTHON_NONE):
        return
    for word in PYTHON_NONE:
        if chat.text == with_content(chat, index, word):
            raise BadRecord(
                f"the chat template prints {word} for the missing content of message {index}; give "
                "the message the content '', or another template (--chat-template)"
            )


def _thoughts(message: Message) -> Iterator[str]:
    """Yield a message's thinking, from its keys and the parts of its content."""
    for key in THINKING_KEYS:
        if isinstance(message.get(key), str):
            yield message[key]
    if isinstance(message["content"], list):
        for part in message["content"]:
            if isinstance(part, dict) and part.get("type") in THINKING_KEYS:
                thought = part.get(part["type"])
                inner = thought if isinstance(thought, list) else [thought]
                yield from (p.get("text", "") if isinstance(p, dict) else str(p) for p in inner)


def _require_call(function: dict[str, Any], what: str, index: int, turn: str) -> None:
    """Refuse a call whose name, or a name or value of its arguments, is not in the turn."""
    name = function.get("name")
    if isinstance(name, str):
        what += f" ({name})"
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", turn):
            raise _dropped(what, index)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        if _squeeze(arguments) in _squeeze(turn):  # as it was written: 1e3 is not 1000.0
            return
        with contextlib.suppress(ValueError):
            arguments = read_value(arguments)
    squeezed = _squeeze(turn)
    for path, value in _leaves(arguments, ""):
        if not any(_squeeze(spelling) in squeezed for spelling in _spellings(value)):
            raise _dropped(
                f"argument {path!r} of {what}" if path else f"arguments of {what}", index
            )


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the names and the plain values of a call's arguments, each with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else str(name)
            yield here, str(name)
            yield from _leaves(inner, here)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def _spellings(value: object) -> Iterator[str]:
    """Yield a value as templates write it: as it is, in JSON, in JSON within JSON, in Python."""
    if not isinstance(value, str):
        yield from (json.dumps(value, default=str), str(value))
        return
    yield value
    for ascii_only in (False, True):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield from (once, json.dumps(once, ensure_ascii=ascii_only)[1:-1])
    yield repr(value)[1:-1]


def _is_written(squeezed: str, whole: str) -> bool:
    return squeezed in whole or any(_squeeze(s) in whole for s in _spellings(squeezed))


def _without_end(turn: str, ends: tuple[str, ...]) -> str:
    for end in ends:
        if turn.endswith(end):
            return turn.removesuffix(end)
    return turn


def _squeeze(text: str) -> str:
    """Remove whitespace, which templates trim and add."""
    return "".join(text.split())


def _dropped(part: str, index: int) -> BadRecord:
    hint = HINT + (" (--no-thinking)" if part == "thinking" else "")
    return BadRecord(f"the chat template does not render the {part} of message {index}; {hint}")
