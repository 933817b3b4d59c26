"""Read the tool calls of a message, whatever form they have, and give them in another one."""

from __future__ import annotations

import json
from typing import Any

from labeler.labeling.inputs.json_items import read_value
from labeler.labeling.rendering.spans import BadRecord

Message = dict[str, Any]
LEGACY = "function_call"
"""Key of a single call in OpenAI's first interface."""
ARGUMENT_KEYS = ("arguments", "parameters", "input")
"""Keys of a call's arguments: OpenAI's, Llama's and Anthropic's."""


class Arguments(dict[str, Any]):
    """Arguments as an object, with the text that they were given as."""

    text: str | None = None


def read_calls(calls: object, where: str) -> list[Any]:
    """Return tool calls with their arguments as objects.

    Arguments may be an object, its JSON text, an Arrow map, empty or absent. Every value is kept.

    Args:
        calls: a list of calls, or its JSON text.
        where: the message, for errors.

    Raises:
        BadRecord: it is not a list of calls whose arguments are objects.
    """
    if isinstance(calls, str):
        calls = _from_json(calls, f"{where} has tool calls that are text, but not JSON")
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise BadRecord(f"{where} has tool calls that are no list: {calls!r:.80}")
    return [_read_call(call, f"call {i} of {where}") for i, call in enumerate(calls)]


def read_legacy_call(call: object, where: str) -> Message:
    """Return the call of a `function_call` key as an entry of `tool_calls`.

    Raises:
        BadRecord: it has no name, or its arguments are not an object.
    """
    if isinstance(call, str):
        call = _from_json(call, f"{where} has a {LEGACY} that is text, but not JSON")
    if not isinstance(call, dict):
        raise BadRecord(f"{where} has a {LEGACY} that is not an object: {call!r:.80}")
    return {"type": "function", "function": _with_object(call, f"the call of {where}")}


def calls_as_text(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as JSON text."""
    return message | {"tool_calls": [_on_function(call, _text) for call in message["tool_calls"]]}


def wrap_calls(message: Message) -> Message:
    """Return a message whose tool calls have name and arguments under the key `function`."""
    wrapped = [
        call if "function" in call else {"type": "function", "function": call}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": wrapped}


def _read_call(call: object, where: str) -> Message:
    if not isinstance(call, dict):
        raise BadRecord(f"{where} is not an object: {call!r:.80}")
    if "function" in call and not isinstance(call["function"], dict):
        raise BadRecord(f"{where} has a function that is not an object: {call['function']!r:.80}")
    return _on_function(call, lambda function: _with_object(function, where))


def _on_function(call: Message, change: Any) -> Message:
    """Apply `change` to what has name and arguments: the key `function`, or the call itself."""
    function = call.get("function")
    if isinstance(function, dict):
        changed: Message = call | {"function": change(function)}
        return changed
    return dict(change(call)) if "name" in call else call


def _with_object(function: Message, where: str) -> Message:
    if not isinstance(function.get("name"), str):
        raise BadRecord(f"{where} has no name: {function!r:.80}")
    key = next((k for k in ARGUMENT_KEYS if function.get(k) is not None), ARGUMENT_KEYS[0])
    value = given = function.get(key)
    while isinstance(value, str) and value.strip():  # encoded twice, where the value is a string
        value = _from_json(value, f"{where} has arguments that are text, but not JSON")
    if isinstance(value, list) and all(_is_pair(item) for item in value):
        value = dict(value)  # an Arrow map
    if value is None or isinstance(value, str):
        value = {}
    if not isinstance(value, dict):
        raise BadRecord(f"{where} has arguments that are not an object: {given!r:.80}")
    arguments = Arguments(value)
    if isinstance(given, str) and given.lstrip().startswith("{"):
        arguments.text = given
    rest = {k: v for k, v in function.items() if k != key}
    return function | {key: arguments} if key == "arguments" else rest | {"arguments": arguments}


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _text(function: Message) -> Message:
    arguments = function.get("arguments")
    if not isinstance(arguments, Arguments):
        return function
    text = arguments.text or json.dumps(arguments, ensure_ascii=False)
    return function | {"arguments": text}


def _from_json(text: str, problem: str) -> Any:
    try:
        return read_value(text)
    except ValueError as error:
        raise BadRecord(f"{problem}: {error}") from error
