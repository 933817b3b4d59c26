"""Render the chats of rows again, and compare the ids with the stored ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens
from labeler.labeling.rendering.messages import Chat
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.teacher.checkpoint_facts import ChatTemplate
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, Manifest
from schemas.fingerprint import sha256_json
from schemas.labeled_spans import SpanRecord

GUESSES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"enable_thinking": False})
"""Template arguments to try where a set does not record its own."""

Message = dict[str, Any]
Fit = Literal["same", "context", "other"]
"""The ids are the template's (`same`), differ only before the last message (`context`), or differ
elsewhere (`other`)."""


class TextRow(TypedDict):
    """The columns of a row that hold its text, or that its text became."""

    id: str
    chunk: int
    sample: int
    parent_id: str | None
    prompt: str | None
    generation: str | None
    input_ids: list[int]
    spans: list[SpanRecord]


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template with its arguments.

    Attributes:
        text: its source.
        arguments: its arguments, besides the chat.
        is_given: it replaces the tokenizer's own (`--chat-template`).
    """

    text: ChatTemplate
    arguments: dict[str, Any]
    is_given: bool = False


def find_template(manifest: Manifest, own: ChatTemplate | None) -> Template | None:
    """Return the template that a set's identity names; None if its source is not at hand.

    Args:
        manifest: the set's manifest.
        own: the tokenizer's own template.
    """
    candidates = [] if own is None else [Template(text=own, arguments=some) for some in GUESSES]
    if recorded := manifest.provenance.get("chat_template"):
        given = recorded["text"]
        text = own if given is None else given
        if text is not None:
            arguments = recorded["arguments"]
            candidates.append(Template(text=text, arguments=arguments, is_given=given is not None))
    digest = manifest.identity.chat_template
    return next((c for c in candidates if sha256_json([c.text, c.arguments]) == digest), None)


def template_fit(
    row: TextRow, teacher: Teacher, template: Template, identity: Identity
) -> Fit | None:
    """Render a row's prompt again and compare; None if it has no prompt for a template.

    A label set does not keep tools and documents. Rows that had some differ, but only before their
    last message, and are longer. Templates that print the date differ there as well.

    Args:
        row: the stored row.
        teacher: the tokenizer, with the template set.
        template: the template with its arguments.
        identity: the set's identity.
    """
    messages = read_messages(row["prompt"])
    generated = identity.mode == "generate"
    if not row["spans"] or (messages is None and not generated):
        return None
    stored = row["input_ids"]
    if generated:
        stored = stored[: row["spans"][0]["start"]]
    fits: list[Fit] = []
    for chat in _possible_chats(row["prompt"], messages, generated=generated):
        try:
            expected = _render(chat, teacher, template, identity)
        except BadRecord:  # it may need the tools, which are not kept
            continue
        cut = (identity.rendering or {}).get("too_long") == "truncate" and not generated
        if stored == (expected[: len(stored)] if cut else expected):
            return "same"
        content = chat[-1]["content"]
        last = len(teacher.encode_continuation(content)) if isinstance(content, str) else 0
        same_end = _common_end(stored, expected) > last
        dated = "strftime" in template.text
        fits.append("context" if same_end and (dated or len(stored) > len(expected)) else "other")
    if generated and messages is None and stored == teacher.encode_prompt(row["prompt"] or ""):
        return "same"  # --raw-prompts
    return min(fits, default=None)  # "context" sorts before "other"


def _possible_chats(
    prompt: str | None, messages: list[Message] | None, *, generated: bool
) -> Iterator[list[Message]]:
    if messages is not None:
        yield messages
    if generated:  # a prompt that is not a chat became a user message
        yield [{"role": "user", "content": prompt}]


def _render(
    chat: list[Message], teacher: Teacher, template: Template, identity: Identity
) -> list[int]:
    if identity.mode == "generate":
        return prompt_tokens(teacher, Chat(messages=chat), template.arguments).ids
    spans = identity.spans or "assistant"
    return chat_tokens(teacher, Chat(messages=chat), template.arguments, spans=spans).ids


def read_messages(prompt: str | None) -> list[Message] | None:
    """Return the messages in a row's `prompt`, which are JSON; None if it is not a chat."""
    try:
        found = json.loads(prompt or "")
    except json.JSONDecodeError:
        return None
    if not isinstance(found, list) or not found:
        return None
    return found if all(isinstance(m, dict) and "role" in m for m in found) else None


def _common_end(a: list[int], b: list[int]) -> int:
    """Return the number of equal ids at the end."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
