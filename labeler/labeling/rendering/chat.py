"""Chats to token ids and spans, through the teacher's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from labeler.labeling.rendering.dropped_parts import message_text, require_others, require_parts
from labeler.labeling.rendering.messages import ASSISTANT, Chat, Message, is_labeled
from labeler.labeling.rendering.spans import BadRecord, Tokens
from labeler.labeling.rendering.token_places import fill_with_prompt, own_offsets, token_spans
from labeler.labeling.rendering.turn_kinds import Region, TurnKinds, turn_kinds
from labeler.labeling.rendering.turns import (
    EARLIER_MARK,
    MARK,
    Conversation,
    find_content,
    find_thinking,
    find_turn,
    is_thinking_rendered,
    render_through,
)
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.teacher.template_process import TemplateLimit
from schemas.errors import first_line

THINKING_ARGUMENTS = ("enable_thinking", "thinking")
"""Arguments that turn thinking off in templates."""
SKIPPED = "skipped"
"""Kind of a turn that gets no labels where everything else does."""
GENERATION_BLOCK = re.compile(r"{%-?\s*generation\s*-?%}")


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
    ids, offsets = own_offsets(teacher, text)
    turns = _turns(teacher, chat, arguments, spans, text, blocks)
    starts, stops = [o[0] for o in offsets], [o[1] for o in offsets]
    found = [span for parts in turns for span in token_spans(parts, starts, stops)]
    if spans == "everything":
        found = [s for s in fill_with_prompt(found, len(ids)) if s.kind != SKIPPED]
    if not found:
        roles = ", ".join(dict.fromkeys(message["role"] for message in chat.messages))
        raise BadRecord(f"it has nothing to label with --spans {spans}; its roles: {roles}")
    return Tokens(ids=ids, spans=tuple(found))


def render_chat(
    teacher: Teacher, chat: Chat, arguments: Mapping[str, object], *, prompt: bool = False
) -> str:
    """Return the template's text of a chat, with a generation prompt if asked.

    Raises:
        BadRecord: the template refuses the chat.
    """
    return _render(teacher, chat, arguments, prompt=prompt)[0]


def _render(
    teacher: Teacher, chat: Chat, arguments: Mapping[str, object], *, prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the template's text, and its `{% generation %}` blocks as (start, stop) characters."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if not teacher.chat_template:
        raise BadRecord("it has messages, but the teacher has no chat template")
    tokenizer, clock = teacher.tokenizer, teacher.clock
    dated = {"strftime_now": clock.strftime_now} if clock else {}
    try:
        template = tokenizer.get_chat_template(tools=chat.tools)
        rendered: Any = (teacher.renderer or render_jinja_template)(
            [chat.messages],
            tools=chat.tools,
            documents=chat.documents,
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=bool(GENERATION_BLOCK.search(template)),
            **{**tokenizer.special_tokens_map, **dated, **arguments},
        )
    except TemplateLimit:
        raise
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
) -> list[list[Region]]:
    """Return what to label, in order: the parts of assistant turns, `prompt` for other turns."""

    def render(messages: list[Message], prompt: bool) -> str:
        return _render(teacher, replace(chat, messages=messages), arguments, prompt=prompt)[0]

    if MARK in text or EARLIER_MARK in text:
        raise BadRecord(f"it contains {MARK!r} or {EARLIER_MARK!r}, which the labeler needs itself")
    messages = chat.messages
    indices = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    conversation = Conversation(
        messages=messages,
        render=render,
        text=text,
        ends=teacher.stop_tokens,
        specials=teacher.special_tokens,
    )
    if indices:
        answered = render_through(conversation, indices[-1]) or ""
        conversation = replace(conversation, ends=_end_tokens(teacher, answered))
    if spans == "completion":
        indices = indices[-1:]
    unlabeled = [i for i, message in enumerate(messages) if not is_labeled(message)]
    indices = [i for i in indices if i not in unlabeled]
    found = {index: find_turn(conversation, index) for index in indices}
    exact = [place for place in found.values() if place is not None]
    if len(exact) < len(found) and (unlabeled or not blocks):
        raise BadRecord(_not_located([i for i, at in found.items() if at is None], indices[-1]))
    if blocks:
        if spans == "completion" and not exact:
            blocks = blocks[-1:]
        exact = [*_intersect(blocks, exact if len(exact) == len(found) else [(0, len(text))])]
    kinds = turn_kinds(teacher)
    thinks = not any(arguments.get(name) is False for name in THINKING_ARGUMENTS)
    thoughts = []
    for index, place in found.items():
        start, stop = place or (0, len(text))
        require_parts(conversation, index, text[start:stop], kinds, thinks=thinks)
        thoughts += _own_thinking(conversation, index, (start, stop), kinds)
    regions = [Region(start=start, stop=stop, kind="answer") for start, stop in exact]
    if spans == "turns":
        skipped = {i for i in range(len(messages)) if messages[i]["role"] == ASSISTANT}
        others = [i for i in range(len(messages)) if i not in skipped.union(unlabeled)]
        regions += [
            Region(start=a, stop=b, kind="prompt") for a, b in _contents(conversation, others)
        ]
    if spans == "everything":
        require_others(conversation)
        regions += _skipped(conversation, unlabeled)
    _refuse_other_turns(conversation, regions)
    regions.sort(key=lambda region: (region.start, region.stop))
    if any(a.stop > b.start for a, b in pairwise(regions)):
        raise BadRecord("the chat template renders two of its messages in the same place")
    return [
        [region] if region.kind in ("prompt", SKIPPED) else kinds.split(text, region, thoughts)
        for region in regions
    ]


def _refuse_other_turns(chat: Conversation, turns: list[Region]) -> None:
    """Refuse a chat whose template puts another role's content into an assistant's turn.

    Raises:
        BadRecord: names the message.
    """
    for index, message in enumerate(chat.messages):
        content = message_text(message).strip()
        if message["role"] == ASSISTANT or not content:
            continue
        if not any(t.kind == "answer" and content in chat.text[t.start : t.stop] for t in turns):
            continue
        place = find_content(chat, index)
        if place and any(
            turn.kind == "answer" and turn.start < place[1] and place[0] < turn.stop
            for turn in turns
        ):
            raise BadRecord(
                f"the chat template puts message {index} into an assistant's turn, where it would "
                "be labeled"
            )


def _contents(chat: Conversation, indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the places of messages' contents; those without text may be missing."""
    for index in indices:
        place = find_content(chat, index)
        if place is not None:
            yield place
        elif message_text(chat.messages[index]).strip():
            raise BadRecord(
                f"the chat template does not render the content of message {index} as it is; "
                "`--spans assistant` does not need it"
            )


def _skipped(chat: Conversation, indices: list[int]) -> Iterator[Region]:
    """Yield the places of turns without labels.

    Raises:
        BadRecord: one cannot be located.
    """
    for index in indices:
        assistant = chat.messages[index]["role"] == ASSISTANT
        place = (find_turn if assistant else find_content)(chat, index)
        if place is None and assistant:
            raise BadRecord(_not_located([index], index))
        if place is not None:
            yield Region(start=place[0], stop=place[1], kind=SKIPPED)


def _own_thinking(
    chat: Conversation, index: int, place: tuple[int, int], kinds: TurnKinds
) -> list[Region]:
    """Return a message's thinking if the template writes it between marks of its own.

    Raises:
        BadRecord: it is in the turn, but cannot be separated from the answer.
    """
    turn = Region(start=place[0], stop=place[1], kind="answer")
    if not is_thinking_rendered(chat, index, place) or any(
        part.kind == "thinking" for part in kinds.split(chat.text, turn)
    ):
        return []
    if (found := find_thinking(chat, index, place)) is None:
        raise BadRecord(
            f"the chat template writes the thinking of message {index} so that it cannot be told "
            "from the answer; leave it out of the record, or give another template"
        )
    return [Region(start=found[0], stop=found[1], kind="thinking")]


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
