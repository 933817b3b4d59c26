"""Chats to token ids and spans, through the teacher's chat template."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from labeler.labeling.rendering.messages import ASSISTANT, Chat, Message
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.turns import (
    EARLIER_MARK,
    MARK,
    Conversation,
    find_content,
    find_turn,
    render_through,
)
from labeler.labeling.teacher.teacher import Teacher
from schemas.errors import first_line

GENERATION_BLOCK = re.compile(r"{%-?\s*generation\s*-?%}")
THINKING = ("<think>", "[THINK]")
PARTS = re.compile(
    r"(?P<thinking>(?:<think>|\[THINK\]).*?(?:</think>|\[/THINK\])\n*|^\s*(?:<think>|\[THINK\]).*)"
    r"|(?P<tool_call><tool_call>.*?</tool_call>\n*|(?:\[TOOL_CALLS\]|<\|python_tag\|>).*)",
    re.DOTALL,
)
"""The parts of a turn other than the answer; the line feeds after a block belong to it."""
REST_OF_THINKING = re.compile(r".*?(?:</think>|\[/THINK\])\n*|.*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Region:
    """Characters start <= c < stop of a rendering, all of one kind."""

    start: int
    stop: int
    kind: str


def prompt_tokens(teacher: Teacher, chat: Chat, arguments: Mapping[str, object]) -> Tokens:
    """Tokenize a chat up to where the assistant's answer starts.

    Args:
        teacher: the teacher, with the chat template.
        chat: the chat to answer.
        arguments: arguments for the template.

    Raises:
        BadRecord: the template refuses the chat.
    """
    text, _ = _render(teacher, chat, arguments, prompt=True)
    return Tokens(ids=teacher.encode_continuation(text))


def chat_tokens(
    teacher: Teacher, chat: Chat, arguments: Mapping[str, object], *, spans: str
) -> Tokens:
    """Tokenize a chat and find the spans to label.

    A token that only partly belongs to a turn gets no label.

    Args:
        teacher: the teacher, with the chat template.
        chat: the chat.
        arguments: arguments for the template.
        spans: the value of `--spans`.

    Raises:
        BadRecord: the template refuses the chat, or rewrites it so that an assistant turn cannot be
            located exactly, or there is nothing to label.
        SoftshardsError: the tokenizer gives no character offsets.
    """
    text, blocks = _render(teacher, chat, arguments)
    ids, offsets = teacher.encode_with_offsets(text)
    turns = _turns(teacher, chat, arguments, spans, text, blocks)
    starts, stops = [o[0] for o in offsets], [o[1] for o in offsets]
    found = [span for turn in turns for span in _spans(text, turn, starts, stops)]
    if spans == "everything":
        found = list(_fill_with_prompt(found, len(ids)))
    if not found:
        raise BadRecord(f"it has nothing to label with --spans {spans}")
    return Tokens(ids=ids, spans=tuple(found))


def _render(
    teacher: Teacher, chat: Chat, arguments: Mapping[str, object], *, prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the template's text, and its `{% generation %}` blocks as (start, stop) characters."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if not teacher.chat_template:
        raise BadRecord("it has messages, but the teacher has no chat template")
    tokenizer = teacher.tokenizer
    try:
        template = tokenizer.get_chat_template(tools=chat.tools)
        rendered: Any = render_jinja_template(
            [chat.messages],
            tools=chat.tools,
            documents=chat.documents,
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=bool(GENERATION_BLOCK.search(template)),
            **{**tokenizer.special_tokens_map, **arguments},
        )
    except Exception as error:  # templates raise any type
        raise BadRecord(f"the chat template refuses its messages: {first_line(error)}") from error
    texts, blocks = rendered
    return texts[0], blocks[0] if blocks else []


def _turns(
    teacher: Teacher,
    chat: Chat,
    arguments: Mapping[str, object],
    spans: str,
    text: str,
    blocks: list[tuple[int, int]],
) -> list[Region]:
    """Return the regions to label, in order: `answer` for assistant turns, `prompt` for others."""

    def render(messages: list[Message], prompt: bool) -> str:
        return _render(teacher, replace(chat, messages=messages), arguments, prompt=prompt)[0]

    if MARK in text or EARLIER_MARK in text:
        raise BadRecord(f"it contains {MARK!r} or {EARLIER_MARK!r}, which the labeler needs itself")
    messages = chat.messages
    indices = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    conversation = Conversation(
        messages=messages, render=render, text=text, ends=teacher.stop_tokens
    )
    if indices:
        answered = render_through(conversation, indices[-1]) or ""
        conversation = replace(conversation, ends=_end_tokens(teacher, answered))
    if spans == "completion":
        indices = indices[-1:]
    found = {index: find_turn(conversation, index) for index in indices}
    exact = [place for place in found.values() if place is not None]
    if blocks:
        if spans == "completion" and not exact:
            blocks = blocks[-1:]
        exact = [*_intersect(blocks, exact if len(exact) == len(found) else [(0, len(text))])]
    elif len(exact) < len(found):
        raise BadRecord(_not_located([i for i, at in found.items() if at is None], indices[-1]))
    regions = [Region(start=start, stop=stop, kind="answer") for start, stop in exact]
    if spans == "turns":
        others = [find_content(conversation, i) for i in range(len(messages)) if i not in found]
        regions += [Region(start=o[0], stop=o[1], kind="prompt") for o in others if o]
    regions.sort(key=lambda region: (region.start, region.stop))
    if any(a.stop > b.start for a, b in pairwise(regions)):
        raise BadRecord("the chat template renders two of its messages in the same place")
    return regions


def _not_located(lost: list[int], last: int) -> str:
    """Return the reason for a reject: the turns in `lost` cannot be located."""
    hint = (
        "give a template that only adds to a chat (--chat-template), or other --template-kwargs"
        if last in lost
        else "`--spans completion` labels only the last turn"
    )
    return (
        "the chat template rewrites the chat, so that the assistant's turn in message "
        f"{lost[0]} cannot be located exactly; {hint}"
    )


def _intersect(
    blocks: list[tuple[int, int]], turns: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield the overlaps of the template's own blocks with the turns found by rendering."""
    for start, stop in blocks:
        for first, last in turns:
            if max(start, first) < min(stop, last):
                yield max(start, first), min(stop, last)


def _end_tokens(teacher: Teacher, answered: str) -> tuple[str, ...]:
    """Return the tokens that end a turn: the model's stop tokens, and the last one of `answered`.

    `answered` is the chat up to its last answer. Its end matters for teachers whose configuration
    names only the end of a document.
    """
    special = [t for t in teacher.special_tokens if answered.rstrip().endswith(t)]
    return tuple(dict.fromkeys([*teacher.stop_tokens, *special]))


def _spans(text: str, region: Region, starts: list[int], stops: list[int]) -> Iterator[Span]:
    """Yield the token spans of a region.

    A token at the edge of the region counts only if it lies inside completely. Between two kinds
    inside the region, a token with characters of both gets the second kind.

    Args:
        text: the rendered chat.
        region: the characters to label.
        starts: first character of each token.
        stops: character after each token.
    """
    first = max(1, bisect_left(starts, region.start))
    end = bisect_right(stops, region.stop)
    parts = [region] if region.kind == "prompt" else _parts(text, region)
    for part in parts:
        last = part.stop == region.stop
        stop = end if last else min(end, max(first, bisect_right(stops, part.stop)))
        if first < stop:
            yield Span(start=first, stop=stop, kind=part.kind)
        first = max(first, stop)


def _parts(text: str, region: Region) -> Iterator[Region]:
    """Cut an assistant turn into answer, thinking and tool calls."""
    place = region.start
    if text[:place].rstrip().endswith(THINKING):  # the generation prompt opened it
        match = REST_OF_THINKING.match(text, place, region.stop)
        assert match is not None
        yield Region(start=place, stop=match.end(), kind="thinking")
        place = match.end()
    done = 0
    for match in PARTS.finditer(text[place : region.stop]):
        if match.start() > done:
            yield Region(start=place + done, stop=place + match.start(), kind="answer")
        assert match.lastgroup is not None
        yield Region(start=place + match.start(), stop=place + match.end(), kind=match.lastgroup)
        done = match.end()
    if place + done < region.stop:
        yield Region(start=place + done, stop=region.stop, kind="answer")


def _fill_with_prompt(spans: list[Span], length: int) -> Iterator[Span]:
    """Yield the spans, and spans of kind `prompt` over all other tokens but the first."""
    done = 1
    for span in spans:
        if done < span.start:
            yield Span(start=done, stop=span.start, kind="prompt")
        yield span
        done = span.stop
    if done < length:
        yield Span(start=done, stop=length, kind="prompt")
