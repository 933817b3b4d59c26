"""Render each form of a record (text, chat, prompt, token ids) to token ids and spans."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens, render_chat
from labeler.labeling.rendering.fit_template import fit_template
from labeler.labeling.rendering.messages import ASSISTANT, Chat
from labeler.labeling.rendering.record_shapes import FoundChat, find_chat, find_shape
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens
from labeler.labeling.rendering.student_context import pair_spans, shows_thinking, student_chat
from labeler.labeling.rendering.token_ids import STUDENT_IDS, STUDENT_SPANS, read_ids, read_tokens
from labeler.labeling.rendering.turn_kinds import turn_kinds
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
        shape: what the record is, for people.
    """

    tokens: Tokens
    columns: tuple[str, ...]
    student: Tokens | None = None
    prompt: str | None = None
    document: bool = False
    templated: bool = False
    shape: str = ""


def render_scored(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    """Render a record of mode score; token ids take precedence over messages, messages over text.

    Raises:
        BadRecord: the record has no such column, or one that cannot be rendered.
        SoftshardsError: the tokenizer does not support the settings.
    """
    shape = find_shape(columns, config)
    if found := find_chat(columns, config, shape):
        return _render_chat(found, columns, teacher, config)
    if shape == "ids":
        return _render_ids(columns, teacher, config)
    if shape == "completion":
        return _render_completion(columns, teacher, config)
    ids = teacher.encode(_text(columns, config.text_column))
    if config.append_eos:
        ids = _append_eos(ids, teacher)
    return Rendered(
        tokens=_label_all_but_first(ids),
        columns=(config.text_column,),
        document=True,
        shape="text",
    )


def _render_ids(columns: Columns, teacher: Teacher, config: LabelConfig) -> Rendered:
    if columns.get(config.spans_column) is None:
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        if config.append_eos:
            ids = _append_eos(ids, teacher)
        names = (config.ids_column, config.spans_column)
        tokens = _label_all_but_first(ids)
        return Rendered(tokens=tokens, columns=names, document=True, shape="token ids")
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
        shape="token ids and spans",
    )


def _render_chat(
    found: FoundChat, columns: Columns, teacher: Teacher, config: LabelConfig
) -> Rendered:
    chat, other = _chats(found, columns, teacher, config)
    tokens, student = _tokenize_chat(chat, teacher, config), None
    if other is not None:
        kinds = turn_kinds(teacher)
        unseen = shows_thinking(chat, kinds) and not shows_thinking(other, kinds)
        hidden = frozenset({"thinking"} if unseen else ())
        student = _tokenize_chat(other, teacher, config)
        tokens, student = pair_spans(tokens, student, hidden=hidden)
    return _rendered_chat(found, chat, tokens, student)


def _chats(
    found: FoundChat, columns: Columns, teacher: Teacher, config: LabelConfig
) -> tuple[Chat, Chat | None]:
    """Return the teacher's chat, and the student's if it is different, as the template reads them.

    Raises:
        BadRecord: a chat cannot be read.
    """
    chat = found.chat
    other = student_chat(
        found.student, columns, names=config, drop=config.student_drop, kinds=turn_kinds(teacher)
    )
    if other is None and found.student != chat:
        other = found.student
    generate = config.mode == "generate"

    def render(changed: Chat) -> str:
        return render_chat(teacher, changed, config.template_arguments, prompt=generate)

    def fit(given: Chat) -> Chat:
        return fit_template(_asked(given, config) if generate else given, render)

    return fit(chat), None if other is None else fit(other)


def _asked(chat: Chat, config: LabelConfig) -> Chat:
    """Return a chat up to what the teacher answers.

    Raises:
        BadRecord: it ends with an answer, and `--regenerate` was not given; or it is only answers.
    """
    messages = chat.messages
    while config.regenerate and messages and messages[-1]["role"] == ASSISTANT:
        messages = messages[:-1]
    if not messages or messages[-1]["role"] == ASSISTANT:
        raise BadRecord(
            "its last message is the assistant's: there is nothing to answer"
            + ("" if config.regenerate else "; --regenerate leaves it out")
        )
    return replace(chat, messages=messages)


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
    return Rendered(
        tokens=tokens,
        student=student,
        columns=names,
        prompt=prompt,
        shape="prompt and completion",
    )


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
    arguments, shape = config.template_arguments, find_shape(columns, config)
    if shape == "ids":
        if columns.get(config.spans_column) is not None:
            raise BadRecord(
                f"it has a column {config.spans_column!r}, but mode generate labels only the "
                "tokens that it generates"
            )
        ids = read_ids(columns, config.ids_column, teacher.vocab_size)
        names = (config.ids_column, config.spans_column)
        return Rendered(tokens=Tokens(ids=ids), columns=names, shape="token ids")
    if found := find_chat(columns, config, shape):
        chat, other = _chats(found, columns, teacher, config)
        student = prompt_tokens(teacher, other, arguments) if other else None
        return _rendered_chat(found, chat, prompt_tokens(teacher, chat, arguments), student)
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
        shape="prompt",
    )


def _rendered_chat(
    found: FoundChat, chat: Chat, tokens: Tokens, student: Tokens | None
) -> Rendered:
    return Rendered(
        tokens=tokens,
        student=student,
        columns=found.columns,
        prompt=json.dumps(chat.messages, ensure_ascii=False),
        templated=True,
        shape=found.shape,
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
