"""Render each form of a record (text, chat, prompt, token ids) to token ids and spans."""

from __future__ import annotations

import json
from dataclasses import dataclass

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import ColumnNames
from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens
from labeler.labeling.rendering.messages import ASSISTANT, Chat, read_chat
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.student_context import pair_spans, shows_thinking, student_chat
from labeler.labeling.rendering.token_ids import STUDENT_IDS, STUDENT_SPANS, read_ids, read_tokens
from labeler.labeling.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A rendered record, before it is cut to --max-length.

    Attributes:
        tokens: the teacher's sequence.
        columns: the columns that were used.
        student: the student's sequence, if it is different.
        prompt: the prompt as text, for people.
        document: it may be cut into chunks.
        templated: the chat template was applied.
    """

    tokens: Tokens
    columns: tuple[str, ...]
    student: Tokens | None = None
    prompt: str | None = None
    document: bool = False
    templated: bool = False


def render_scored(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    """Render a record of mode score; token ids take precedence over messages, messages over text.

    Raises:
        BadRecord: the record has no such column, or one that cannot be rendered.
        SoftshardsError: the tokenizer does not support the settings.
    """

    def has(*names: str) -> bool:
        return all(columns.get(name) is not None for name in names)

    if has(config.ids_column):
        return _render_ids(columns, teacher, config)
    if has(config.messages_column):
        return _render_chat(columns, teacher, config)
    if has(config.text_column):
        ids = teacher.encode(_text(columns, config.text_column))
        if config.append_eos:
            ids = _append_eos(ids, teacher)
        return Rendered(
            tokens=_label_all_but_first(ids), columns=(config.text_column,), document=True
        )
    if has(config.prompt_column, config.completion_column):
        return _render_completion(columns, teacher, config)
    raise BadRecord(
        f"it has neither a column {config.text_column!r} nor both {config.prompt_column!r} and "
        f"{config.completion_column!r}, nor {config.messages_column!r} nor "
        f"{config.ids_column!r}; its columns are {', '.join(map(repr, columns)) or 'none'}"
    )


def _render_ids(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    if columns.get(config.spans_column) is None:
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        if config.append_eos:
            ids = _append_eos(ids, teacher)
        names = (config.ids_column, config.spans_column)
        return Rendered(tokens=_label_all_but_first(ids), columns=names, document=True)
    tokens = read_tokens(columns, config.ids_column, config.spans_column, teacher.vocab_size)
    student = None
    if columns.get(STUDENT_IDS) is not None and columns.get(STUDENT_SPANS) is not None:
        student = read_tokens(columns, STUDENT_IDS, STUDENT_SPANS, teacher.vocab_size)
        tokens, student = pair_spans(tokens, student)
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


def _render_chat(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    chat, other = _chats(columns, config)
    tokens, student = _tokenize_chat(chat, teacher, config), None
    if other is not None:
        unseen = shows_thinking(chat) and not shows_thinking(other)
        hidden = frozenset({"thinking"} if unseen else ())
        student = _tokenize_chat(other, teacher, config)
        tokens, student = pair_spans(tokens, student, hidden=hidden)
    return _rendered_chat(chat, tokens, student, config)


def _chats(columns: Columns, config: LabelConfig) -> tuple[Chat, Chat | None]:
    """Return the teacher's chat, and the student's if it is different."""
    chat = read_chat(columns, config)
    column, drop = config.student_messages_column, config.student_drop
    return chat, student_chat(chat, columns, messages_column=column, drop=drop)


def _tokenize_chat(chat: Chat, teacher: Teacher, config: LabelConfig) -> Tokens:
    return chat_tokens(teacher, chat, config.template_arguments, spans=config.spans)


def _render_completion(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    prompt = _text(columns, config.prompt_column)
    completion = teacher.encode_continuation(_text(columns, config.completion_column))
    if config.append_eos:
        completion = _append_eos(completion, teacher)
    if not completion:
        raise BadRecord("the completion is empty")
    tokens, student = _join(teacher.encode_prompt(prompt), completion, config.spans), None
    if columns.get(config.student_prompt_column) is not None:
        other = teacher.encode_prompt(_text(columns, config.student_prompt_column))
        tokens, student = pair_spans(tokens, _join(other, completion, config.spans))
    if not tokens.spans:
        raise BadRecord("prompt and completion have one token; a label needs a token before it")
    names = (config.prompt_column, config.completion_column, config.student_prompt_column)
    return Rendered(tokens=tokens, student=student, columns=names, prompt=prompt)


def _join(prompt: list[int], completion: list[int], spans: str) -> Tokens:
    """Join prompt and completion; `--spans turns` and `everything` label the prompt too."""
    start, ids = max(1, len(prompt)), prompt + completion
    labeled = [Span(start=start, stop=len(ids), kind="answer")] if start < len(ids) else []
    if spans in ("turns", "everything") and start > 1:
        labeled.insert(0, Span(start=1, stop=start, kind="prompt"))
    return Tokens(ids=ids, spans=tuple(labeled))


def render_prompt(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    """Render a record of mode generate: the prompt that the teacher continues.

    Raises:
        BadRecord: the record has no prompt, or it cannot be rendered.
    """
    arguments = config.template_arguments
    if columns.get(config.ids_column) is not None:
        if columns.get(config.spans_column) is not None:
            raise BadRecord(
                f"it has a column {config.spans_column!r}, but mode generate labels only the "
                "tokens that it generates"
            )
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        return Rendered(tokens=Tokens(ids=ids), columns=(config.ids_column, config.spans_column))
    if columns.get(config.messages_column) is not None:
        chat, other = _chats(columns, config)
        for messages in [c.messages for c in (chat, other) if c]:
            if messages[-1]["role"] == ASSISTANT:
                raise BadRecord("its last message is the assistant's: there is nothing to answer")
        student = prompt_tokens(teacher, other, arguments) if other else None
        return _rendered_chat(chat, prompt_tokens(teacher, chat, arguments), student, config)
    if columns.get(config.prompt_column) is None:
        raise BadRecord(
            f"it has neither {config.prompt_column!r} nor {config.messages_column!r} nor "
            f"{config.ids_column!r}; its columns are {', '.join(map(repr, columns)) or 'none'}"
        )
    templated = bool(teacher.chat_template) and not config.raw_prompts

    def tokenize(name: str) -> Tokens:
        text = _text(columns, name)
        if not templated:
            return Tokens(ids=teacher.encode_prompt(text))
        return prompt_tokens(teacher, Chat(messages=[{"role": "user", "content": text}]), arguments)

    other_prompt = columns.get(config.student_prompt_column) is not None
    return Rendered(
        tokens=tokenize(config.prompt_column),
        student=tokenize(config.student_prompt_column) if other_prompt else None,
        columns=(config.prompt_column, config.student_prompt_column),
        prompt=_text(columns, config.prompt_column),
        templated=templated,
    )


def _rendered_chat(
    chat: Chat, tokens: Tokens, student: Tokens | None, names: ColumnNames
) -> Rendered:
    return Rendered(
        tokens=tokens,
        student=student,
        columns=(
            names.messages_column,
            names.tools_column,
            names.documents_column,
            names.student_messages_column,
        ),
        prompt=json.dumps(chat.messages, ensure_ascii=False),
        templated=True,
    )


def _label_all_but_first(ids: list[int]) -> Tokens:
    if len(ids) < 2:
        raise BadRecord(f"the text has {len(ids)} tokens; a label needs a token before it")
    return Tokens(ids=ids, spans=(Span(start=1, stop=len(ids), kind="text"),))


def _append_eos(ids: list[int], teacher: Teacher) -> list[int]:
    eos = teacher.eos_id
    return ids if ids[-1:] == [eos] else [*ids, eos]


def _text(columns: Columns, name: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not text")
    return value
