"""The kinds of the parts of an assistant's turn: thinking, tool calls and the answer.

Two tags are always known. Others count only if the template or the tokenizer has them: elsewhere
`<thought>` is a word like any other. Channels (`<|channel|>analysis<|message|>`) name the kind of
all the text up to the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from labeler.labeling.teacher.teacher import Teacher

Tag = tuple[str, str]
"""Opening and closing markup."""

THINKING: tuple[Tag, ...] = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
MORE_THINKING: tuple[Tag, ...] = (
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
CALLS: tuple[Tag, ...] = (("<tool_call>", "</tool_call>"), ("[TOOL_CALLS]", ""))
CALLS += (("<|python_tag|>", ""),)
MORE_CALLS: tuple[Tag, ...] = (
    ("<tool_calls>", "</tool_calls>"),
    ("<function_calls>", "</function_calls>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<|tool_call>", "<tool_call|>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"),
)
"""Markup of calls; without closing markup they last to the end of the turn."""
TURN_START = re.compile(
    rf"\s*({'|'.join(re.escape(t[0]) for t in (*THINKING, *CALLS, *MORE_THINKING, *MORE_CALLS))})"
)
"""Markup that the assistant itself writes at the start of a turn, even one without content."""
CHANNEL = re.compile(r"(?P<to> to=[^<]*)?<\|channel\|>(?P<name>\w+)(?P<more>[^\n]*?)<\|message\|>")
"""A channel's header; with a recipient it is a tool call."""
LONGEST_TAG, LONGEST_HEADER = 64, 256
"""Characters before a turn that are searched for what a generation prompt opened."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Characters start <= c < stop of a rendering, all of one kind."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class TurnKinds:
    """Patterns of the parts that a template writes.

    Attributes:
        opened: the end of a text in which thinking was opened.
        rest: thinking that was opened before, up to its end.
        thinking: a block of thinking with its tags; blanks before the first one of a turn and line
            feeds after each belong to it.
        parts: the parts of a turn other than the answer.
        tags: thinking's opening and closing tags.
        has_channels: the parts are channels.
    """

    opened: re.Pattern[str]
    rest: re.Pattern[str]
    thinking: re.Pattern[str]
    parts: re.Pattern[str]
    tags: re.Pattern[str]
    has_channels: bool

    def split(self, text: str, region: Region, thoughts: Iterable[Region] = ()) -> list[Region]:
        """Cut an assistant's turn into thinking, tool calls and answer, in order.

        Args:
            text: the rendered chat.
            region: the turn, or a part of it.
            thoughts: thinking between marks that are not known here.
        """
        parts = self._split(text, region)
        for thought in thoughts:
            parts = [piece for part in parts for piece in _cut(part, thought)]
        return parts

    def _split(self, text: str, region: Region) -> list[Region]:
        if self.has_channels and (channels := list(_channels(text, region))):
            return channels
        turn, done = text[region.start : region.stop], 0
        found: list[Region] = []

        def add(stop: int, kind: str) -> None:
            nonlocal done
            if done < stop:
                found.append(Region(start=region.start + done, stop=region.start + stop, kind=kind))
                done = stop

        before = text[max(0, region.start - LONGEST_TAG) : region.start]
        if self.opened.search(before.rstrip()):  # the generation prompt opened it
            match = self.rest.match(turn)
            assert match is not None
            add(match.end(), "thinking")
        for match in self.parts.finditer(turn, done):
            assert match.lastgroup is not None
            add(match.start(), "answer")
            add(match.end(), match.lastgroup)
        add(len(turn), "answer")
        return list(_without_blanks(text, found))

    def without_thinking(self, text: str) -> str:
        """Return an assistant's text without its thinking."""
        if self.has_channels and CHANNEL.search(text):
            parts = _channels(text, Region(start=0, stop=len(text), kind="answer"))
            return "".join(text[p.start : p.stop] for p in parts if p.kind != "thinking")
        return self.thinking.sub("", text)

    def thoughts(self, text: str) -> Iterator[str]:
        """Yield the thinking in an assistant's text, without its tags."""
        for match in self.thinking.finditer(text):
            yield self.tags.sub("", match.group())


def turn_kinds(teacher: Teacher) -> TurnKinds:
    """Return the patterns of the teacher's template."""
    added = (token.content for token in teacher.tokenizer.added_tokens_decoder.values())
    return _turn_kinds(str(teacher.chat_template), frozenset(added))


@lru_cache
def _turn_kinds(template: str, tokens: frozenset[str]) -> TurnKinds:
    def known(tags: Iterable[Tag]) -> list[Tag]:
        return [
            (a, b) for a, b in tags if a in template or {a.removesuffix("thought"), b} <= tokens
        ]

    thinking = [*THINKING, *known(MORE_THINKING)]
    calls = [*CALLS, *known(MORE_CALLS)]
    opening = "|".join(re.escape(a) for a, _ in thinking)
    closing = "|".join(re.escape(b) for _, b in thinking)
    blocks = "|".join(f"{re.escape(a)}.*?{re.escape(b)}" for a, b in thinking)
    called = "|".join(
        rf"{re.escape(a)}.*?{re.escape(b)}\n*" if b else f"{re.escape(a)}.*" for a, b in calls
    )
    # A closing tag alone ends thinking that was opened in a prompt which the text does not show.
    alone = [re.escape(b) for _, b in thinking if b in template or b in tokens]
    unopened = rf"|\A(?:(?!{opening}|{closing}).)*?(?:{'|'.join(alone)})\n*" if alone else ""
    block = rf"(?:\A\s*)?(?:{blocks})\n*{unopened}"
    return TurnKinds(
        opened=re.compile(rf"(?:{opening})\Z"),
        rest=re.compile(rf".*?(?:{closing})\n*|.*", re.DOTALL),
        thinking=re.compile(block, re.DOTALL),
        parts=re.compile(
            rf"(?P<thinking>{block}|\A\s*(?:{opening}).*)|(?P<tool_call>{called})", re.DOTALL
        ),
        tags=re.compile(f"{opening}|{closing}"),
        has_channels="<|channel|>" in template or {"<|channel|>", "<|message|>"} <= tokens,
    )


def _cut(part: Region, thought: Region) -> Iterator[Region]:
    """Yield a part of a turn with `thought` cut out of its answer."""
    start, stop = max(part.start, thought.start), min(part.stop, thought.stop)
    if part.kind != "answer" or start >= stop:
        yield part
        return
    if part.start < start:
        yield replace(part, stop=start)
    yield replace(thought, start=start, stop=stop)
    if stop < part.stop:
        yield replace(part, start=stop)


def _channels(text: str, region: Region) -> Iterator[Region]:
    """Yield a region for each channel: from its header to the next one's."""
    headers = [*CHANNEL.finditer(text, region.start, region.stop)]
    bounds: list[tuple[int, re.Match[str] | None]] = [(h.start(), h) for h in headers]
    before = [*CHANNEL.finditer(text, max(0, region.start - LONGEST_HEADER), region.start)]
    if before and before[-1].end() == region.start:  # the generation prompt has the first header
        bounds.insert(0, (region.start, before[-1]))
    elif not headers:
        return
    elif text[region.start : headers[0].start()].strip():
        bounds.insert(0, (region.start, None))
    else:
        bounds[0] = (region.start, headers[0])
    for (start, header), (stop, _) in pairwise([*bounds, (region.stop, None)]):
        yield Region(start=start, stop=stop, kind=_channel_kind(header))


def _channel_kind(header: re.Match[str] | None) -> str:
    if header is None:
        return "answer"
    if header["to"] or " to=" in header["more"]:
        return "tool_call"
    return "thinking" if header["name"] == "analysis" else "answer"


def _without_blanks(text: str, parts: list[Region]) -> Iterator[Region]:
    """Yield the parts; blanks between two blocks of thinking are thinking too."""
    for before, part, after in zip([None, *parts], parts, [*parts[1:], None]):
        between = before and after and before.kind == after.kind == "thinking"
        blank = part.kind == "answer" and between and not text[part.start : part.stop].strip()
        yield replace(part, kind="thinking") if blank else part
