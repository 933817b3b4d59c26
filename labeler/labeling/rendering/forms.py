"""The forms that a record may have (text, chat, prompt, token ids), each to token ids and spans."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens
from labeler.labeling.rendering.messages import ASSISTANT, Chat, read_chat
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.student_context import hides_thinking, pair, student_chat
from labeler.labeling.rendering.token_ids import STUDENT_IDS, STUDENT_SPANS, read_ids, read_tokens
from labeler.labeling.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a record becomes, before it is fitted to --max-length.

    Attributes:
        tokens: what the teacher sees; student: what the student is to see instead.
        columns: the columns that went into it.
        prompt: text for people.
        document: whether it may be cut into chunks.
        templated: whether the chat template made it.
    """

    tokens: Tokens
    columns: tuple[str, ...]
    student: Tokens | None = None
    prompt: str | None = None
    document: bool = False
    templated: bool = False


def scored(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> Rendered:
    """A record of mode score. Token ids come before messages, messages before text.

    Raises:
        BadRecord: it has none of these, or one that cannot be rendered.
        SoftshardsError: the tokenizer lacks what the settings ask of it.
    """

    def has(*names: str) -> bool:
        return all(columns.get(name) is not None for name in names)

    if has(config.ids_column):
        return _pretokenized(columns, teacher, config)
    if has(config.messages_column):
        return _chat(columns, teacher, config)
    if has(config.text_column):
        ids = teacher.encode(_text(columns, config.text_column))
        if config.append_eos:
            ids = _with_eos(ids, teacher)
        return Rendered(tokens=_all_but_first(ids), columns=(config.text_column,), document=True)
    if has(config.prompt_column, config.completion_column):
        return _completion(columns, teacher, config)
    raise BadRecord(
        f"it has neither a column {config.text_column!r} nor both {config.prompt_column!r} and "
        f"{config.completion_column!r}, nor {config.messages_column!r} nor "
        f"{config.ids_column!r}; its columns are {', '.join(map(repr, columns)) or 'none'}"
    )


def _pretokenized(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> Rendered:
    if columns.get(config.spans_column) is None:
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        if config.append_eos:
            ids = _with_eos(ids, teacher)
        names = (config.ids_column, config.spans_column)
        return Rendered(tokens=_all_but_first(ids), columns=names, document=True)
    tokens = read_tokens(columns, config.ids_column, config.spans_column, teacher.vocab_size)
    student = None
    if columns.get(STUDENT_IDS) is not None and columns.get(STUDENT_SPANS) is not None:
        student = read_tokens(columns, STUDENT_IDS, STUDENT_SPANS, teacher.vocab_size)
        tokens, student = pair(tokens, student)
    prompt = columns.get(config.prompt_column)
    return Rendered(
        tokens=tokens,
        student=student,
        columns=(
            *(config.ids_column, config.spans_column, STUDENT_IDS, STUDENT_SPANS),
            *([config.prompt_column] if isinstance(prompt, str) else []),
        ),
        prompt=prompt if isinstance(prompt, str) else None,
    )


def _chat(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> Rendered:
    chat = read_chat(columns, config)
    tokens, student = chat_tokens(teacher, chat, config), None
    if (other := student_chat(chat, columns, config)) is not None:
        unseen = hides_thinking(other) and not hides_thinking(chat)
        hidden = frozenset({"thinking"} if unseen else ())
        tokens, student = pair(tokens, chat_tokens(teacher, other, config), hidden=hidden)
    return _of_chat(chat, tokens, student, config)


def _completion(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> Rendered:
    prompt = _text(columns, config.prompt_column)
    completion = teacher.encode_more(_text(columns, config.completion_column))
    if config.append_eos:
        completion = _with_eos(completion, teacher)
    if not completion:
        raise BadRecord("the completion is empty")
    tokens, student = _joined(teacher.encode_prompt(prompt), completion, config), None
    if columns.get(config.student_prompt_column) is not None:
        other = teacher.encode_prompt(_text(columns, config.student_prompt_column))
        tokens, student = pair(tokens, _joined(other, completion, config))
    if not tokens.spans:
        raise BadRecord("prompt and completion have one token; a label needs a token before it")
    names = (config.prompt_column, config.completion_column, config.student_prompt_column)
    return Rendered(tokens=tokens, student=student, columns=names, prompt=prompt)


def _joined(prompt: list[int], completion: list[int], config: LabelConfig) -> Tokens:
    """Prompt and completion; the prompt is labeled, too, where --spans asks for what all say."""
    start, ids = max(1, len(prompt)), prompt + completion
    spans = [Span(start=start, stop=len(ids), kind="answer")] if start < len(ids) else []
    if config.spans in ("turns", "everything") and start > 1:
        spans.insert(0, Span(start=1, stop=start, kind="prompt"))
    return Tokens(ids=ids, spans=tuple(spans))


def prompted(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> Rendered:
    """A record of mode generate: what the teacher is to go on from.

    Raises:
        BadRecord: it has nothing of the kind, or it cannot be rendered.
    """
    if columns.get(config.ids_column) is not None:
        if columns.get(config.spans_column) is not None:
            raise BadRecord(
                f"it has {config.spans_column!r}, which say what to label; mode generate labels "
                "what it generates"
            )
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        return Rendered(tokens=Tokens(ids=ids), columns=(config.ids_column, config.spans_column))
    if columns.get(config.messages_column) is not None:
        chat = read_chat(columns, config)
        other = student_chat(chat, columns, config)
        for messages in [c.messages for c in (chat, other) if c]:
            if messages[-1]["role"] == ASSISTANT:
                raise BadRecord("its last message is the assistant's: there is nothing to answer")
        student = prompt_tokens(teacher, other, config) if other else None
        return _of_chat(chat, prompt_tokens(teacher, chat, config), student, config)
    if columns.get(config.prompt_column) is None:
        raise BadRecord(
            f"it has neither {config.prompt_column!r} nor {config.messages_column!r} nor "
            f"{config.ids_column!r}; its columns are {', '.join(map(repr, columns)) or 'none'}"
        )
    templated = bool(teacher.chat_template) and not config.raw_prompts

    def tokens(name: str) -> Tokens:
        text = _text(columns, name)
        if not templated:
            return Tokens(ids=teacher.encode_prompt(text))
        return prompt_tokens(teacher, Chat(messages=[{"role": "user", "content": text}]), config)

    other_prompt = columns.get(config.student_prompt_column) is not None
    return Rendered(
        tokens=tokens(config.prompt_column),
        student=tokens(config.student_prompt_column) if other_prompt else None,
        columns=(config.prompt_column, config.student_prompt_column),
        prompt=_text(columns, config.prompt_column),
        templated=templated,
    )


def _of_chat(chat: Chat, tokens: Tokens, student: Tokens | None, config: LabelConfig) -> Rendered:
    return Rendered(
        tokens=tokens,
        student=student,
        columns=(
            config.messages_column,
            config.tools_column,
            config.documents_column,
            config.student_messages_column,
        ),
        prompt=json.dumps(chat.messages, ensure_ascii=False),
        templated=True,
    )


def _all_but_first(ids: list[int]) -> Tokens:
    if len(ids) < 2:
        raise BadRecord(f"the text has {len(ids)} tokens; a label needs a token before it")
    return Tokens(ids=ids, spans=(Span(start=1, stop=len(ids), kind="text"),))


def _with_eos(ids: list[int], teacher: Teacher) -> list[int]:
    eos = teacher.eos_id
    return ids if ids[-1:] == [eos] else [*ids, eos]


def _text(columns: dict[str, Any], name: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not text")
    return value
