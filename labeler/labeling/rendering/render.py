"""Render records to sequences: token ids within --max-length, and the spans to label."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.named_ids import read_asked
from labeler.labeling.rendering.record_forms import Rendered, render_prompt, render_scored
from labeler.labeling.rendering.spans import (
    BadRecord,
    Span,
    Tokens,
    count_labels,
    first_labels,
    labels_before,
)
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.teacher.template_process import (
    SECONDS_EACH,
    ChatTooLong,
    TemplateLimit,
    limited_templates,
)
from schemas import SoftshardsError
from schemas.asked_ids import asked_column


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A rendered row, keyed by (id, chunk).

    Attributes:
        id: the record's id.
        chunk: number of the chunk, for documents that were cut.
        source: name of the input file.
        meta: the unused columns as JSON; NaN and infinities are null.
        prompt: the prompt as text, for people.
        input_ids: the teacher's tokens: the sequence (score) or the prompt (generate).
        spans: the tokens to label; empty in mode generate.
        n_labels: number of labels (generate: the maximum).
        parent_id: key of the label set row that this one was made from.
        student_input_ids: the student's tokens, if they are different.
        student_spans: the place of each of `spans` in the student's tokens, with the same length
            (empty in mode generate).
        asked_ids: ids to label beside the most likely ones, for each label; None where the input
            names none.
        templated: the chat template was applied.
        shape: what the record is, for people.
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
    asked_ids: list[list[int]] | None = None
    templated: bool = False
    shape: str = ""


def render(
    records: Iterable[Record | Reject], teacher: Teacher, config: LabelConfig
) -> Iterator[Sequence | Reject]:
    """Render records in order; each gives one or more sequences, or one reject.

    Raises:
        SoftshardsError: the tokenizer does not support the settings, or the chat template takes too
            much time or memory.
    """
    with limited_templates(each=SECONDS_EACH) as renderer:
        teacher = replace(teacher, renderer=renderer)
        for record in records:
            if isinstance(record, Reject):
                yield record
                continue
            try:
                yield from _sequences(record, teacher, config)
            except (BadRecord, ChatTooLong) as error:
                yield Reject(id=_id(record, config), source=record.source, reason=str(error))
            except TemplateLimit as error:
                raise SoftshardsError(
                    error.what,
                    path=record.source,
                    row=_id(record, config),
                    hint="a template needs milliseconds; look at it, or pass another one with "
                    "--chat-template",
                ) from error


def _sequences(record: Record, teacher: Teacher, config: LabelConfig) -> Iterator[Sequence]:
    if config.mode == "generate":
        rendered = render_prompt(record.columns, teacher, config)
        _require_room(rendered, config.max_tokens, config.max_length)
        yield _sequence(record, config, rendered)
        return
    rendered = render_scored(record.columns, teacher, config)
    if rendered.document and config.too_long == "chunk":
        if config.ids_from is not None:
            raise BadRecord("--ids-from names ids for labels: it needs token ids and spans")
        for chunk, tokens in _chunks(rendered.tokens.ids, config.max_length, config.overlap):
            yield _sequence(record, config, replace(rendered, tokens=tokens), chunk)
    else:
        truncate = config.too_long == "truncate"
        fitting = _fit_length(rendered, config.max_length, truncate=truncate)
        sequence = _sequence(record, config, fitting)
        if config.ids_from is None:
            yield sequence
        else:
            asked = read_asked(
                record.columns, config.ids_from, sequence.n_labels, teacher.vocab_size
            )
            yield replace(sequence, asked_ids=asked)


def _chunks(ids: list[int], max_length: int, overlap: int) -> Iterator[tuple[int, Tokens]]:
    """Cut a document; a chunk repeats `overlap` tokens of the previous one, without labels."""
    stride = max_length - overlap
    for chunk, start in enumerate(range(0, max(1, len(ids) - overlap), stride)):
        piece = ids[start : start + max_length]
        first = max(1, overlap if chunk else 1)
        if len(piece) > first:
            span = Span(start=first, stop=len(piece), kind="text")
            yield chunk, Tokens(ids=piece, spans=(span,))


def _fit_length(rendered: Rendered, max_length: int, *, truncate: bool) -> Rendered:
    """Truncate a sequence that is too long, or refuse it; the student keeps the same labels.

    Raises:
        BadRecord: it is too long and not to be truncated, or no label would be left.
    """
    both = [t for t in (rendered.tokens, rendered.student) if t is not None]
    longest = max(len(tokens.ids) for tokens in both)
    if longest <= max_length:
        return rendered
    if not truncate:
        raise BadRecord(f"it has {longest} tokens, more than --max-length {max_length}")
    kept = min(labels_before(tokens.spans, max_length) for tokens in both)
    if not kept:
        raise BadRecord(
            f"it has {longest} tokens; truncated to --max-length {max_length}, no label is left"
        )
    cut = [Tokens(ids=t.ids[:max_length], spans=first_labels(t.spans, kept)) for t in both]
    return replace(rendered, tokens=cut[0], student=cut[1] if rendered.student else None)


def _require_room(rendered: Rendered, max_tokens: int, max_length: int) -> None:
    """Refuse a prompt that leaves no room for --max-tokens; prompts are never truncated.

    Raises:
        BadRecord: the prompt is too long, or empty.
    """
    for whose, tokens in (("the", rendered.tokens), ("the student's", rendered.student)):
        if tokens is None:
            continue
        length = len(tokens.ids)
        if not length:
            raise BadRecord(f"{whose} prompt is empty")
        if length + max_tokens > max_length:
            raise BadRecord(
                f"{whose} prompt has {length} tokens, with --max-tokens {length + max_tokens}, "
                f"more than --max-length {max_length}"
            )


def _used(rendered: Rendered, config: LabelConfig) -> set[str]:
    """Return the columns whose content the row has elsewhere."""
    asked = () if config.ids_from is None else (asked_column(config.ids_from),)
    return {*rendered.columns, config.id_column, *asked}


def _sequence(record: Record, config: LabelConfig, rendered: Rendered, chunk: int = 0) -> Sequence:
    tokens, student = rendered.tokens, rendered.student
    if student == tokens:
        student = None
    generated = config.max_tokens * config.samples
    return Sequence(
        id=_id(record, config),
        chunk=chunk,
        source=record.source,
        meta=_meta(record, _used(rendered, config), config.drop_columns),
        prompt=rendered.prompt,
        input_ids=tokens.ids,
        spans=tokens.spans,
        n_labels=count_labels(tokens.spans) if config.mode == "score" else generated,
        parent_id=record.parent_id,
        student_input_ids=None if student is None else student.ids,
        student_spans=None if student is None else student.spans,
        templated=rendered.templated,
        shape=rendered.shape,
    )


def _id(record: Record, config: LabelConfig) -> str:
    own = record.columns.get(config.id_column)
    return record.id if own is None else str(own)


def _meta(record: Record, used: set[str], drop: tuple[str, ...]) -> str | None:
    rest = {
        name: value
        for name, value in record.columns.items()
        if name not in used and not any(fnmatchcase(name, pattern) for pattern in drop)
    }
    if not rest:
        return None
    try:
        return json.dumps(rest, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN or Infinity, which JSON does not have
        text = json.dumps(rest, ensure_ascii=False, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
