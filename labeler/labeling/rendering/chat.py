"""Chats to token ids and spans, through the teacher's chat template."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.messages import ASSISTANT, Chat
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.turns import EARLIER_MARK, MARK, Conversation, content, said, up_to
from labeler.labeling.teacher.teacher import Teacher, template_arguments
from schemas.errors import first_line

GENERATION_BLOCK = re.compile(r"{%-?\s*generation\s*-?%}")
THINKING = ("<think>", "[THINK]")
PARTS = re.compile(
    r"(?P<thinking>(?:<think>|\[THINK\]).*?(?:</think>|\[/THINK\])\n*|^\s*(?:<think>|\[THINK\]).*)"
    r"|(?P<tool_call><tool_call>.*?</tool_call>\n*|(?:\[TOOL_CALLS\]|<\|python_tag\|>).*)",
    re.DOTALL,
)
"""What an assistant says beside its answer; the line feeds after a block belong to it."""
REST_OF_THINKING = re.compile(r".*?(?:</think>|\[/THINK\])\n*|.*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Region:
    """Characters start <= c < stop of a rendering, all of one kind."""

    start: int
    stop: int
    kind: str


def prompt_tokens(teacher: Teacher, chat: Chat, config: LabelConfig) -> Tokens:
    """A chat up to where the assistant's answer starts.

    Raises:
        BadRecord: the template refuses it.
    """
    text, _ = _render(teacher, chat, config, prompt=True)
    return Tokens(ids=teacher.encode_more(text))


def chat_tokens(teacher: Teacher, chat: Chat, config: LabelConfig) -> Tokens:
    """A chat with the spans that `--spans` asks for; a token that is only partly said has no label.

    Raises:
        BadRecord: the template refuses it, has nothing to label, or rewrites it so that what the
            assistant said cannot be told exactly.
        SoftshardsError: the tokenizer does not say which characters its tokens stand for.
    """
    text, blocks = _render(teacher, chat, config)
    ids, offsets = teacher.encode_with_offsets(text)
    turns = _turns(teacher, chat, config, text, blocks)
    starts, stops = [o[0] for o in offsets], [o[1] for o in offsets]
    spans = [span for turn in turns for span in _spans(text, turn, starts, stops)]
    if config.spans == "everything":
        spans = list(_with_the_rest(spans, len(ids)))
    if not spans:
        raise BadRecord(f"it has nothing to label with --spans {config.spans}")
    return Tokens(ids=ids, spans=tuple(spans))


def _render(
    teacher: Teacher, chat: Chat, config: LabelConfig, *, prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The template's text, and what it marks as `{% generation %}`, in characters."""
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
            **{**tokenizer.special_tokens_map, **template_arguments(config)},
        )
    except Exception as error:  # templates raise whatever their authors chose
        raise BadRecord(f"the chat template refuses its messages: {first_line(error)}") from error
    texts, blocks = rendered
    return texts[0], blocks[0] if blocks else []


def _turns(
    teacher: Teacher, chat: Chat, config: LabelConfig, text: str, blocks: list[tuple[int, int]]
) -> list[Region]:
    """The regions to label, in order: kind `answer` what an assistant said, `prompt` the others."""

    def render(messages: list[dict[str, Any]], prompt: bool) -> str:
        return _render(teacher, replace(chat, messages=messages), config, prompt=prompt)[0]

    if MARK in text or EARLIER_MARK in text:
        raise BadRecord(f"it holds {MARK!r} or {EARLIER_MARK!r}, which the labeler needs itself")
    messages = chat.messages
    indices = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    conversation = Conversation(
        messages=messages, render=render, text=text, ends=teacher.stop_tokens
    )
    if indices:
        answered = up_to(conversation, indices[-1]) or ""
        conversation = replace(conversation, ends=_end_tokens(teacher, answered))
    if config.spans == "completion":
        indices = indices[-1:]
    found = {index: said(conversation, index) for index in indices}
    exact = [place for place in found.values() if place is not None]
    if blocks:
        if config.spans == "completion" and not exact:
            blocks = blocks[-1:]
        exact = [*_agreed(blocks, exact if len(exact) == len(found) else [(0, len(text))])]
    elif len(exact) < len(found):
        raise BadRecord(_inexact([i for i, place in found.items() if place is None], indices[-1]))
    regions = [Region(start=start, stop=stop, kind="answer") for start, stop in exact]
    if config.spans == "turns":
        others = [content(conversation, i) for i in range(len(messages)) if i not in found]
        regions += [Region(start=o[0], stop=o[1], kind="prompt") for o in others if o]
    regions.sort(key=lambda region: (region.start, region.stop))
    if any(a.stop > b.start for a, b in pairwise(regions)):
        raise BadRecord("the chat template renders two of its messages in the same place")
    return regions


def _inexact(lost: list[int], last: int) -> str:
    hint = (
        "give a template that only adds to a chat (--chat-template), or other --template-kwargs"
        if last in lost
        else "`--spans completion` labels the last turn alone"
    )
    return (
        "the chat template rewrites the chat, so that what the assistant said in message "
        f"{lost[0]} cannot be told exactly; {hint}"
    )


def _agreed(
    blocks: list[tuple[int, int]], turns: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """What the template's own marks and the turns found by rendering agree on."""
    for start, stop in blocks:
        for first, last in turns:
            if max(start, first) < min(stop, last):
                yield max(start, first), min(stop, last)


def _end_tokens(teacher: Teacher, answered: str) -> tuple[str, ...]:
    """Tokens that end a turn: the model's stop tokens, and the one that `answered` ends with.

    That is the chat up to its last answer; its end is for teachers whose configuration names only
    the end of a document.
    """
    special = [t for t in teacher.special_tokens if answered.rstrip().endswith(t)]
    return tuple(dict.fromkeys([*teacher.stop_tokens, *special]))


def _spans(text: str, region: Region, starts: list[int], stops: list[int]) -> Iterator[Span]:
    """Token spans of a region whose tokens begin and end at these characters.

    Outside, a token counts only if it is wholly in the region. Inside, between kinds, a token that
    has characters of both is of the latter kind.
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
    """A turn cut into answer, thinking and tool calls."""
    place = region.start
    if text[:place].rstrip().endswith(THINKING):  # the generation prompt opened it
        match = REST_OF_THINKING.match(text, place, region.stop)
        assert match is not None
        yield Region(start=place, stop=match.end(), kind="thinking")
        place = match.end()
    said_text = text[place : region.stop]
    done = 0
    for match in PARTS.finditer(said_text):
        if match.start() > done:
            yield Region(start=place + done, stop=place + match.start(), kind="answer")
        assert match.lastgroup is not None
        yield Region(start=place + match.start(), stop=place + match.end(), kind=match.lastgroup)
        done = match.end()
    if place + done < region.stop:
        yield Region(start=place + done, stop=region.stop, kind="answer")


def _with_the_rest(spans: list[Span], length: int) -> Iterator[Span]:
    """The spans, and kind `prompt` for all other tokens but the first."""
    done = 1
    for span in spans:
        if done < span.start:
            yield Span(start=done, stop=span.start, kind="prompt")
        yield span
        done = span.stop
    if done < length:
        yield Span(start=done, stop=length, kind="prompt")
