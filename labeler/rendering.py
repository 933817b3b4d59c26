"""Records to token ids and spans: what the teacher sees, and where labels are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from labeler.config import LabelConfig
from labeler.sources import Record, Reject
from labeler.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Span:
    """Labels are wanted for the tokens at start <= t < stop; `kind` is one of SPAN_KINDS."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A rendered row, keyed by (id, chunk); spans are empty where a generation is to come.

    Attributes:
        parent_id: key of the label set row that this one was made from.
        input_ids: what the teacher sees: the sequence (score) or the prompt (generate).
        student_input_ids: what the student is to see instead, or None; student_spans: where the
            labels of `spans` are in it, one by one of equal length (empty for generate).
        n_labels: labels that it will have (generate: at most).
        templated: whether the chat template made it.
    """

    id: str
    chunk: int
    source: str
    meta: str | None
    prompt: str | None
    input_ids: list[int]
    spans: tuple[Span, ...]
    n_labels: int
    parent_id: str | None = None
    student_input_ids: list[int] | None = None
    student_spans: tuple[Span, ...] | None = None
    templated: bool = False


class BadRecord(Exception):
    """Why a record cannot be rendered; becomes a reject."""


def render(
    records: Iterable[Record | Reject], teacher: Teacher, config: LabelConfig
) -> Iterator[Sequence | Reject]:
    """Render records in order; each gives one or more sequences, or one reject."""
    for record in records:
        if isinstance(record, Reject):
            yield record
            continue
        try:
            rendering = _generate if config.mode == "generate" else _score
            yield from rendering(record, teacher, config)
        except BadRecord as error:
            yield Reject(id=_id(record, config), source=record.source, reason=str(error))


def _score(record: Record, teacher: Teacher, config: LabelConfig) -> Iterator[Sequence]:
    columns = record.columns
    if config.text_column in columns:
        text = _text(columns, config.text_column)
        yield from _chunks(teacher.encode(text), record, config)
        return
    if config.prompt_column not in columns or config.completion_column not in columns:
        raise BadRecord(
            f"it has neither a column {config.text_column!r} nor both "
            f"{config.prompt_column!r} and {config.completion_column!r}; "
            f"its columns are {', '.join(map(repr, columns)) or 'none'}"
        )
    prompt = _text(columns, config.prompt_column)
    prompt_ids = teacher.encode(prompt)
    completion = teacher.encode_more(_text(columns, config.completion_column))
    ids = prompt_ids + completion
    if len(ids) > config.max_length:
        raise BadRecord(_too_long(f"prompt and completion have {len(ids)} tokens", config))
    start = max(1, len(prompt_ids))
    if start >= len(ids):
        raise BadRecord("the completion is empty")
    span = Span(start=start, stop=len(ids), kind="answer")
    yield _sequence(record, config, ids, spans=(span,), prompt=prompt)


def _chunks(ids: list[int], record: Record, config: LabelConfig) -> Iterator[Sequence]:
    """Cut a document; a chunk starts `overlap` tokens early, and labels only what is new."""
    if len(ids) < 2:
        raise BadRecord(f"the text has {len(ids)} tokens; a label needs a token before it")
    stride = config.max_length - config.overlap
    for chunk, start in enumerate(range(0, max(1, len(ids) - config.overlap), stride)):
        piece = ids[start : start + config.max_length]
        first = max(1, config.overlap if chunk else 1)
        if len(piece) > first:
            span = Span(start=first, stop=len(piece), kind="text")
            yield _sequence(record, config, piece, spans=(span,), chunk=chunk)


def _generate(record: Record, teacher: Teacher, config: LabelConfig) -> Iterator[Sequence]:
    columns = record.columns
    if columns.get(config.messages_column) is not None:
        messages = columns[config.messages_column]
        if not teacher.chat_template:
            raise BadRecord("it has messages, but the teacher has no chat template")
        try:
            ids = teacher.render_chat(messages)
        except Exception as error:  # templates raise whatever their authors chose
            raise BadRecord(f"the chat template refuses its messages: {error}") from error
        prompt = json.dumps(messages, ensure_ascii=False)
    elif columns.get(config.prompt_column) is not None:
        prompt = _text(columns, config.prompt_column)
        if not config.raw_prompts and teacher.chat_template:
            ids = teacher.render_chat([{"role": "user", "content": prompt}])
        else:
            ids = teacher.encode(prompt)
    else:
        raise BadRecord(
            f"it has neither {config.prompt_column!r} nor {config.messages_column!r}; "
            f"its columns are {', '.join(map(repr, columns)) or 'none'}"
        )
    if not ids:
        raise BadRecord("the prompt is empty")
    if len(ids) + config.max_tokens > config.max_length:
        what = f"the prompt has {len(ids)} tokens, with --max-tokens {len(ids) + config.max_tokens}"
        raise BadRecord(_too_long(what, config))
    yield _sequence(record, config, ids, spans=(), prompt=prompt)


def _sequence(
    record: Record,
    config: LabelConfig,
    ids: list[int],
    *,
    spans: tuple[Span, ...],
    prompt: str | None = None,
    chunk: int = 0,
) -> Sequence:
    planned = config.max_tokens * config.samples
    labels = sum(s.stop - s.start for s in spans) if config.mode == "score" else planned
    return Sequence(
        id=_id(record, config),
        chunk=chunk,
        source=record.source,
        meta=_meta(record, config),
        prompt=prompt,
        input_ids=ids,
        spans=spans,
        n_labels=labels,
    )


def _id(record: Record, config: LabelConfig) -> str:
    own = record.columns.get(config.id_column)
    return record.id if own is None else str(own)


def _meta(record: Record, config: LabelConfig) -> str | None:
    texts = (config.text_column, config.prompt_column, config.completion_column)
    used = (*texts, config.messages_column, config.id_column)
    rest = {name: value for name, value in record.columns.items() if name not in used}
    return json.dumps(rest, ensure_ascii=False, default=str) if rest else None


def _text(columns: dict[str, Any], name: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise BadRecord(f"column {name!r} is a {type(value).__name__}, not text")
    return value


def _too_long(what: str, config: LabelConfig) -> str:
    return f"{what}, more than --max-length {config.max_length}"
