"""Where in a rendered chat a turn stands, in characters: without what the template added to it.

A template is a program, so the answer comes from running it. A turn begins where the generation
prompt of the messages before it ends. Where the template rewrites history, so that this prompt is
no prefix of the whole chat, the chat is rendered once more with a private-use character in place
of the turn: what stands before and after that character does not come from the turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labeler.labeling.rendering.messages import Message
from labeler.labeling.rendering.spans import BadRecord

Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text; BadRecord where the template refuses."""

SAID_FIRST = re.compile(r"\s*(<think>|\[THINK\]|<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>)")
"""What an assistant itself writes at the start of a turn that has no content."""
MARK, EARLIER_MARK = "\ue0f0", "\ue0f1"
"""Private-use characters that stand for a turn."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A chat and its rendering.

    Attributes:
        messages: its messages.
        render: the template.
        text: what it makes of the messages, without a generation prompt.
        ends: end-of-turn tokens.
    """

    messages: list[Message]
    render: Render
    text: str
    ends: tuple[str, ...]


def said(chat: Conversation, index: int) -> tuple[int, int] | None:
    """Where message `index`, an assistant's, is in the text: its end-of-turn token included.

    Whitespace that the template writes after that token is not. None where the template leaves no
    way to tell exactly.
    """
    start, stop = _start(chat, index), _stop(chat, index)
    return None if start is None or stop is None or start > stop else (start, stop)


def up_to(chat: Conversation, index: int) -> str | None:
    """The chat as if message `index` were its last; None where the template refuses that."""
    if index == len(chat.messages) - 1:
        return chat.text
    return _try(chat, chat.messages[: index + 1])


def content(chat: Conversation, index: int) -> tuple[int, int] | None:
    """Where the content of message `index` is in the text; None where the template leaves it out.

    Raises:
        BadRecord: it is there, but cannot be told from what is around it.
    """
    marked = _try(chat, _with_mark(chat.messages, index, MARK))
    if marked is None or MARK not in marked:
        return None
    before, _, after = marked.partition(MARK)
    stop = len(chat.text) - len(after)
    if not (chat.text.startswith(before) and chat.text.endswith(after) and len(before) <= stop):
        raise BadRecord(
            f"the chat template renders message {index} so that its text cannot be told from what "
            "is around it; `--spans assistant` does not need it"
        )
    return len(before), stop


def _start(chat: Conversation, index: int) -> int | None:
    """Where the generation prompt before an assistant's turn ends."""
    prompt = _try(chat, chat.messages[:index], prompt=True)
    if prompt is not None and chat.text.startswith(prompt):
        if prompt != _try(chat, chat.messages[:index]) or SAID_FIRST.match(chat.text, len(prompt)):
            return len(prompt)
        # The template has no generation prompt: a header, if there is one, comes with the turn.
        for _, before, _ in _marked(chat, index):
            if chat.text.startswith(before) and before.startswith(prompt):
                header = before[len(prompt) :]
                return len(before) if header.strip() else len(prompt)
        return None
    for turn, before, _ in _marked(chat, index):
        if chat.text.startswith(before):
            said_too = _after_prompt(chat, index, turn)
            if not said_too.strip() or SAID_FIRST.match(said_too):
                return len(before) - len(said_too)
            if not turn.get("tool_calls"):
                return len(before)
    return None


def _after_prompt(chat: Conversation, index: int, turn: Message) -> str:
    """What stands between the generation prompt and the mark in `turn`.

    Found by marking the message before, too. Empty where this does not show the prompt.
    """
    if not index:
        return ""
    earlier = _with_mark(chat.messages[:index], index - 1, EARLIER_MARK)
    asked = _try(chat, earlier, prompt=True)
    whole = _try(chat, [*earlier, turn, *chat.messages[index + 1 :]])
    if asked is None or whole is None or EARLIER_MARK not in asked or EARLIER_MARK not in whole:
        return ""
    prompt = asked.rpartition(EARLIER_MARK)[2]
    between = whole.rpartition(EARLIER_MARK)[2].partition(MARK)[0]
    return between[len(prompt) :] if between.startswith(prompt) else ""


def _stop(chat: Conversation, index: int) -> int | None:
    """Where an assistant's turn ends, with its end-of-turn token."""
    done = up_to(chat, index)
    if done is not None and chat.text.startswith(done) and done.rstrip().endswith(chat.ends):
        return len(done.rstrip())
    end = re.compile("|".join(map(re.escape, chat.ends)) or "(?!)")
    for turn, _, after in _marked(chat, index):
        match = end.search(after)
        closing = after[: match.end()] if match else ""
        if match and (not after[: match.start()].strip() or _closes(chat, index, turn, closing)):
            rest = after[match.end() :]
            said_all = chat.text.removesuffix(rest)
            if chat.text.endswith(rest) and said_all.endswith(chat.ends):
                return len(said_all)
        elif not turn.get("tool_calls") and chat.text.endswith(after):
            return len(chat.text) - len(after)
    return None


def _closes(chat: Conversation, index: int, turn: Message, closing: str) -> bool:
    """Whether `closing` also follows the mark where the chat ends with this turn."""
    alone = _try(chat, [*chat.messages[:index], turn])
    return alone is not None and alone.partition(MARK)[2].startswith(closing)


def _marked(chat: Conversation, index: int) -> Iterator[tuple[Message, str, str]]:
    """(turn with the mark, text before it, text after it), for the turns that a template takes.

    The mark alone in place of all that the turn says, then in place of its first tool call's name:
    some templates refuse a chat without the call.
    """
    message = chat.messages[index]
    turns = [_with_mark([{"role": message["role"], "content": message["content"]}], 0, MARK)[0]]
    if calls := message.get("tool_calls"):
        function = {"name": MARK, "arguments": {}}
        turns.append(message | {"tool_calls": [calls[0] | {"function": function}]})
    for turn in turns:
        text = _try(chat, [*chat.messages[:index], turn, *chat.messages[index + 1 :]])
        if text is not None and text.count(MARK) == 1:
            before, _, after = text.partition(MARK)
            yield turn, before, after


def _with_mark(messages: list[Message], index: int, mark: str) -> list[Message]:
    """The messages with `mark` as the content of one, in the form that its content has."""
    listed = isinstance(messages[index]["content"], list)
    value = [{"type": "text", "text": mark}] if listed else mark
    return [m | {"content": value} if i == index else m for i, m in enumerate(messages)]


def _try(chat: Conversation, messages: list[Message], *, prompt: bool = False) -> str | None:
    """A rendering of other messages, or None where the template refuses them."""
    try:
        return chat.render(messages, prompt)
    except BadRecord:
        return None
