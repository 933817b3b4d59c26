"""The place of a turn in a rendered chat, in characters, without what the template adds to it.

A template is a program, so its output has to be searched. A turn begins where the generation prompt
of the messages before it ends. If the template rewrites history, so that this prompt is not a
prefix of the whole chat, the chat is rendered again with a private-use character in place of the
turn: the text before and after that character does not come from the turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labeler.labeling.rendering.message_content import THINKING_KEYS
from labeler.labeling.rendering.messages import ASSISTANT, Message
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.rendering.turn_kinds import TURN_START

Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text; raises BadRecord if the template refuses."""

MARK, EARLIER_MARK = "\ue0f0", "\ue0f1"
"""Private-use characters that stand for a turn."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A chat and its rendering.

    Attributes:
        messages: its messages.
        render: the template.
        text: the rendering of the messages, without a generation prompt.
        ends: end-of-turn tokens.
        specials: tokens that are markup.
    """

    messages: list[Message]
    render: Render
    text: str
    ends: tuple[str, ...]
    specials: tuple[str, ...] = ()


def find_turn(chat: Conversation, index: int) -> tuple[int, int] | None:
    """Return (start, stop) of assistant message `index` in the text, with its end-of-turn token.

    Whitespace that the template writes after that token is excluded.

    Returns:
        None if the turn cannot be located exactly.
    """
    start, stop = _start(chat, index), _stop(chat, index)
    return None if start is None or stop is None or start > stop else (start, stop)


def render_through(chat: Conversation, index: int) -> str | None:
    """Render the chat up to and including message `index`; None if the template refuses it."""
    if index == len(chat.messages) - 1:
        return chat.text
    return _try(chat, chat.messages[: index + 1])


def find_content(chat: Conversation, index: int) -> tuple[int, int] | None:
    """Return (start, stop) of message `index`'s content in the text; None if it is not rendered.

    Raises:
        BadRecord: it is rendered, but cannot be separated from the text around it.
    """
    marked = _try(chat, _with_mark(chat.messages, index, MARK))
    if marked is None or MARK not in marked:
        return None
    before, _, after = marked.partition(MARK)
    stop = len(chat.text) - len(after)
    if not (chat.text.startswith(before) and chat.text.endswith(after) and len(before) <= stop):
        raise BadRecord(
            f"the chat template renders message {index} so that its text cannot be separated from "
            "the text around it; `--spans assistant` does not need it"
        )
    return len(before), stop


def find_thinking(chat: Conversation, index: int, place: tuple[int, int]) -> tuple[int, int] | None:
    """Return (start, stop) of what the thinking of message `index` adds to its turn at `place`.

    The chat is rendered without it. If that text can begin in more than one place, as between two
    headers that are alike, it begins at the first.

    Returns:
        None if the template writes something else instead.
    """
    message = {k: v for k, v in chat.messages[index].items() if k not in THINKING_KEYS}
    without = _try(chat, [*chat.messages[:index], message, *chat.messages[index + 1 :]])
    if without is None or len(without) >= len(chat.text):
        return None
    same_end = shared_length(chat.text[::-1], without[::-1])
    start = max(place[0], len(without) - same_end)
    stop = start + len(chat.text) - len(without)
    if chat.text[:start] != without[:start] or stop > place[1]:
        return None
    return start, stop


def shared_length(a: str, b: str) -> int:
    """Return the number of characters at which two texts begin alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def is_thinking_rendered(chat: Conversation, index: int, place: tuple[int, int]) -> bool:
    """Return whether the thinking under a key of message `index` is in its turn at `place`."""
    thoughts = [chat.messages[index].get(key) for key in THINKING_KEYS]
    return any(
        isinstance(t, str) and t.strip() and chat.text.find(t.strip(), *place) >= 0
        for t in thoughts
    )


def is_content_rendered(chat: Conversation, index: int) -> bool:
    """Return whether the template writes message `index`'s content; true if it refuses to tell."""
    marked = _try(chat, _with_mark(chat.messages, index, MARK))
    return marked is None or MARK in marked


def with_content(chat: Conversation, index: int, word: str) -> str | None:
    """Render the chat with `word` as message `index`'s content; None if that is not rendered."""
    marked = _try(chat, _with_mark(chat.messages, index, MARK))
    if marked is None or MARK not in marked:
        return None
    quoted = f'"{MARK}"' in marked  # the template writes JSON
    return marked.replace(f'"{MARK}"' if quoted else MARK, word)


def _start(chat: Conversation, index: int) -> int | None:
    """Return the end of the generation prompt before an assistant turn."""
    prompt = _try(chat, chat.messages[:index], prompt=True)
    if prompt is not None and chat.text.startswith(prompt):
        if prompt != _try(chat, chat.messages[:index]) or TURN_START.match(chat.text, len(prompt)):
            return len(prompt)
        # Without a generation prompt, the turn's header (if any) is rendered with the turn.
        for _, before, _ in _marked(chat, index):
            if chat.text.startswith(before) and before.startswith(prompt):
                header = before[len(prompt) :]
                return len(before) if header.strip() else len(prompt)
        return None
    for turn, before, _ in _marked(chat, index):
        if chat.text.startswith(before):
            opening = _after_prompt(chat, index, turn)
            if not opening.strip() or TURN_START.match(opening):
                return len(before) - len(opening)
            if not turn.get("tool_calls"):
                return len(before)
    return None


def _after_prompt(chat: Conversation, index: int, turn: Message) -> str:
    """Return the text between the generation prompt and the mark in `turn`.

    It is found by marking the previous message too; empty if that does not reveal the prompt.
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
    """Return the end of an assistant turn, with its end-of-turn token."""
    done = render_through(chat, index)
    if (
        done is not None
        and chat.text.startswith(done)
        and done.rstrip().endswith((*chat.ends, *chat.specials))
    ):
        return len(done.rstrip())
    end = re.compile("|".join(map(re.escape, chat.ends)) or "(?!)")
    for turn, _, after in _marked(chat, index):
        match = end.search(after)
        closing = after[: match.end()] if match else ""
        if match and (not after[: match.start()].strip() or _closes(chat, index, turn, closing)):
            rest = after[match.end() :]
            through = chat.text.removesuffix(rest)
            if chat.text.endswith(rest) and through.endswith(chat.ends):
                return len(through)
        elif not turn.get("tool_calls") and chat.text.endswith(after):
            return len(chat.text) - len(after) + len(_shared_end(chat, after))
    return None


def _shared_end(chat: Conversation, after: str) -> str:
    """Return the token at the start of `after` if it also ends another role's message.

    Some templates end the turns of history with a token that the model itself does not write.
    """
    token = next((t for t in chat.specials if after.startswith(t)), "")
    others = [i for i, m in enumerate(chat.messages) if m["role"] != ASSISTANT]
    if not token or not others:
        return ""
    marked = _try(chat, _with_mark(chat.messages, others[0], MARK)) or ""
    return token if marked.partition(MARK)[2].startswith(token) else ""


def _closes(chat: Conversation, index: int, turn: Message, closing: str) -> bool:
    """Return whether `closing` also follows the mark when the chat ends with this turn."""
    ended = _try(chat, [*chat.messages[:index], turn])
    return ended is not None and ended.partition(MARK)[2].startswith(closing)


def _marked(chat: Conversation, index: int) -> Iterator[tuple[Message, str, str]]:
    """Yield (turn with the mark, text before the mark, text after it) if the template accepts it.

    The mark first replaces the whole turn, then only the name of its first tool call: some
    templates refuse a chat without the call.
    """
    message = chat.messages[index]
    turns = [_with_mark([{"role": message["role"], "content": message["content"]}], 0, MARK)[0]]
    if calls := message.get("tool_calls"):
        given = calls[0].get("function", calls[0]).get("arguments")
        function = {"name": MARK, "arguments": "{}" if isinstance(given, str) else {}}
        turns.append(message | {"tool_calls": [calls[0] | {"function": function}]})
    for turn in turns:
        text = _try(chat, [*chat.messages[:index], turn, *chat.messages[index + 1 :]])
        if text is not None and text.count(MARK) == 1:
            before, _, after = text.partition(MARK)
            yield turn, before, after


def _with_mark(messages: list[Message], index: int, mark: str) -> list[Message]:
    """Return the messages with `mark` as the content of one, as text or parts like before."""
    listed = isinstance(messages[index]["content"], list)
    value = [{"type": "text", "text": mark}] if listed else mark
    return [m | {"content": value} if i == index else m for i, m in enumerate(messages)]


def _try(chat: Conversation, messages: list[Message], *, prompt: bool = False) -> str | None:
    """Render other messages; None if the template refuses them."""
    try:
        return chat.render(messages, prompt)
    except BadRecord:
        return None
