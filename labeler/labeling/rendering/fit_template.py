"""Give a chat the form that its template reads: the first of several that loses nothing.

A template that prints a list or an object would print Python's form of it. So these are replaced by
ones that print a private-use character, and the text is searched for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from labeler.labeling.rendering.message_content import THINKING_KEYS, join_text, join_thinking
from labeler.labeling.rendering.messages import ASSISTANT, Chat, Message
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.rendering.tool_calls import LEGACY, calls_as_text, wrap_calls

PRINTED = "\ue0f2"
"""What a list or an object prints here."""
NOTED = {*THINKING_KEYS, LEGACY}
"""Keys of which it matters whether a template asks for them."""


class _List(list[Any]):
    def __str__(self) -> str:
        return PRINTED

    __repr__ = __str__


class _Object(dict[str, Any]):
    def __str__(self) -> str:
        return PRINTED

    __repr__ = __str__


class _Watched(dict[str, Any]):
    """A message that notes which of the keys NOTED a template asks for.

    `LimitedTemplates` brings the notes of its process back.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def _note(self, key: object) -> None:
        if isinstance(key, str) and key in NOTED:
            self.asked.add(key)


def fit_template(chat: Chat, render: Callable[[Chat], str]) -> Chat:
    """Return the chat in a form that the template renders without loss; as it is if there is none.

    Content in parts stays or becomes text; arguments of calls stay objects or become JSON text;
    thinking gets the key that the template asks for.

    Args:
        chat: the chat as it was read.
        render: the template.

    Raises:
        BadRecord: the template would print a list or an object in Python's form.
    """
    if not any(map(_has_forms, chat.messages)):
        return chat
    problem = None
    for messages in _forms(chat.messages):
        watched = [_watch(message) for message in messages]
        try:
            text = render(replace(chat, messages=list(watched)))
        except BadRecord as error:
            problem = problem or error
            continue
        if PRINTED in text:
            continue
        if all(part in text for message in messages for part in _texts(message)):
            fitted = [_name_thinking(m, w.asked) for m, w in zip(messages, watched)]
            return replace(chat, messages=_name_results(fitted, watched))
    if problem is None and any(_has_structure(message) for message in chat.messages):
        raise BadRecord(
            "the chat template prints a list or an object of its messages in Python's form"
        )
    return chat


def _has_forms(message: Message) -> bool:
    return (
        isinstance(message["content"], (list, dict))
        or "tool_calls" in message
        or any(message.get(key) for key in THINKING_KEYS)
    )


def _has_structure(message: Message) -> bool:
    return isinstance(message["content"], (list, dict)) or "tool_calls" in message


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the messages as they are, then with parts joined, calls in other forms, or both."""
    called = any("tool_calls" in message for message in messages)
    listed = any(isinstance(message["content"], list) for message in messages)
    for calls in (_same, calls_as_text, wrap_calls, _wrapped_text) if called else (_same,):
        changed = [calls(m) if "tool_calls" in m else m for m in messages]
        yield changed
        if listed:
            yield [_joined(message) for message in changed]


def _same(message: Message) -> Message:
    return message


def _wrapped_text(message: Message) -> Message:
    return wrap_calls(calls_as_text(message))


def _joined(message: Message) -> Message:
    """Return a message with its text as text and its thinking under a key."""
    parts = message["content"]
    if not isinstance(parts, list) or not all(isinstance(p, dict) and "type" in p for p in parts):
        return message
    thinking = join_thinking(parts)
    return (
        message | {"content": join_text(parts)} | ({THINKING_KEYS[0]: thinking} if thinking else {})
    )


def _texts(message: Message) -> list[str]:
    parts = message["content"] if isinstance(message["content"], list) else []
    return [part["text"].strip() for part in parts if isinstance(part, dict) and "text" in part]


def _watch(message: Message) -> _Watched:
    watched = _Watched(message)
    content = message["content"]
    if isinstance(content, list):
        watched.update(content=_List(_Object(p) if isinstance(p, dict) else p for p in content))
    elif isinstance(content, dict):
        watched.update(content=_Object(content))
    if "tool_calls" in message:
        watched.update(tool_calls=_List(map(_watch_call, message["tool_calls"])))
    return watched


def _watch_call(call: Message) -> _Object:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        function = function | {"arguments": _Object(arguments)}
    return _Object(call | {"function": _Object(function)} if "function" in call else function)


def _name_thinking(message: Message, asked: set[str]) -> Message:
    """Return an assistant's message with its thinking under the key that the template asked for."""
    if message["role"] != ASSISTANT:
        return message
    given = [key for key in THINKING_KEYS if message.get(key)]
    wanted = [key for key in THINKING_KEYS if key in asked]
    if not given or not wanted or any(key in wanted for key in given):
        return message
    rest = {key: value for key, value in message.items() if key not in THINKING_KEYS}
    return rest | {wanted[0]: message[given[0]]}


def _name_results(messages: list[Message], watched: list[_Watched]) -> list[Message]:
    """Return the messages with results of legacy calls as a tool's, where the calls became so."""
    legacy = [w for w in watched if LEGACY in dict(w)]
    if not legacy or any(LEGACY in w.asked for w in legacy):
        return messages
    return [m | {"role": "tool"} if m["role"] == "function" else m for m in messages]
