"""Rows rendered again: are their ids what a chat template makes of the messages beside them?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens
from labeler.labeling.rendering.messages import Chat
from labeler.labeling.rendering.spans import BadRecord
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, Manifest
from schemas.fingerprint import sha256_json

GUESSES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"enable_thinking": False})
"""Arguments that are tried where a set does not say with which its template was run."""

Fit = Literal["same", "context", "other"]
"""The ids are the template's; or they differ before the last message only; or otherwise."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template with the arguments it was run with.

    Attributes:
        text: its source; arguments: what it was given beside the chat.
        given: whether it was given in place of the tokenizer's own (`--chat-template`).
    """

    text: str
    arguments: dict[str, Any]
    given: bool = False


def known_template(manifest: Manifest, own: str | None) -> Template | None:
    """The template that a set's identity names, if it can be had; None where it cannot.

    Args:
        manifest: of the set.
        own: a tokenizer's own template.
    """
    candidates = [] if own is None else [Template(text=own, arguments=some) for some in GUESSES]
    if recorded := manifest.provenance.get("chat_template"):
        given = recorded["text"]
        text = own if given is None else given
        if text is not None:
            arguments = recorded["arguments"]
            candidates.append(Template(text=text, arguments=arguments, given=given is not None))
    digest = manifest.identity.chat_template
    return next((c for c in candidates if sha256_json([c.text, c.arguments]) == digest), None)


def fit(
    row: dict[str, Any], teacher: Teacher, template: Template, identity: Identity
) -> Fit | None:
    """Render a row's prompt again and compare; None where it has none that a template renders.

    A label set does not keep tools and documents, so rows that had some differ, but only before
    their last message, and are longer. Templates that print the date differ there, too.

    Args:
        row: with `prompt`, `input_ids` and `spans`.
        teacher: whose tokenizer has the template; template: with its arguments.
        identity: of the set.
    """
    messages = read_messages(row["prompt"])
    generated = identity.mode == "generate"
    if not row["spans"] or (messages is None and not generated):
        return None
    chats = [] if messages is None else [messages]
    if generated:
        chats.append([{"role": "user", "content": row["prompt"]}])
    stored = row["input_ids"][: row["spans"][0]["start"]] if generated else row["input_ids"]
    arguments, spans = template.arguments, identity.spans or "assistant"
    fits: list[Fit] = []
    for chat in chats:
        try:
            if generated:
                expected = prompt_tokens(teacher, Chat(messages=chat), arguments).ids
            else:
                expected = chat_tokens(teacher, Chat(messages=chat), arguments, spans=spans).ids
        except BadRecord:  # it may need the tools that are not kept
            continue
        cut = (identity.rendering or {}).get("too_long") == "truncate" and not generated
        if stored == (expected[: len(stored)] if cut else expected):
            return "same"
        said = chat[-1]["content"]
        last = len(teacher.encode_more(said)) if isinstance(said, str) else 0
        alike = _common_end(stored, expected) > last
        dated = "strftime" in template.text
        fits.append("context" if alike and (dated or len(stored) > len(expected)) else "other")
    if generated and messages is None and stored == teacher.encode_prompt(row["prompt"]):
        return "same"  # --raw-prompts
    return min(fits, default=None)  # "context" comes before "other"


def read_messages(prompt: str | None) -> list[dict[str, Any]] | None:
    """The messages in a row's `prompt`, which are JSON; None where it is no chat."""
    try:
        found = json.loads(prompt or "")
    except json.JSONDecodeError:
        return None
    if not isinstance(found, list) or not found:
        return None
    return found if all(isinstance(m, dict) and "role" in m for m in found) else None


def _common_end(a: list[int], b: list[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
