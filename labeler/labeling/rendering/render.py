"""Records to sequences: token ids within --max-length, and the spans where labels are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.forms import Rendered, prompted, scored
from labeler.labeling.rendering.spans import (
    BadRecord,
    Span,
    Tokens,
    count_labels,
    first_labels,
    labels_before,
)
from labeler.labeling.teacher.teacher import Teacher


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


def render(
    records: Iterable[Record | Reject], teacher: Teacher, config: LabelConfig
) -> Iterator[Sequence | Reject]:
    """Render records in order; each gives one or more sequences, or one reject.

    Raises:
        SoftshardsError: the tokenizer lacks what the settings ask of it.
    """
    for record in records:
        if isinstance(record, Reject):
            yield record
            continue
        try:
            yield from _sequences(record, teacher, config)
        except BadRecord as error:
            yield Reject(id=_id(record, config), source=record.source, reason=str(error))


def _sequences(record: Record, teacher: Teacher, config: LabelConfig) -> Iterator[Sequence]:
    if config.mode == "generate":
        rendered = prompted(record.columns, teacher, config)
        _require_room(rendered, config)
        yield _sequence(record, config, rendered)
        return
    rendered = scored(record.columns, teacher, config)
    if rendered.document and config.too_long == "chunk":
        for chunk, tokens in _chunks(rendered.tokens.ids, config):
            yield _sequence(record, config, replace(rendered, tokens=tokens), chunk)
    else:
        yield _sequence(record, config, _fitted(rendered, config))


def _chunks(ids: list[int], config: LabelConfig) -> Iterator[tuple[int, Tokens]]:
    """Cut a document; a chunk starts `overlap` tokens early, and labels only what is new."""
    stride = config.max_length - config.overlap
    for chunk, start in enumerate(range(0, max(1, len(ids) - config.overlap), stride)):
        piece = ids[start : start + config.max_length]
        first = max(1, config.overlap if chunk else 1)
        if len(piece) > first:
            span = Span(start=first, stop=len(piece), kind="text")
            yield chunk, Tokens(ids=piece, spans=(span,))


def _fitted(rendered: Rendered, config: LabelConfig) -> Rendered:
    """Cut to --max-length where --too-long says so; the labels left are the student's, too."""
    both = [t for t in (rendered.tokens, rendered.student) if t is not None]
    longest = max(len(tokens.ids) for tokens in both)
    if longest <= config.max_length:
        return rendered
    if config.too_long != "truncate":
        raise BadRecord(f"it has {longest} tokens, more than --max-length {config.max_length}")
    kept = min(labels_before(tokens.spans, config.max_length) for tokens in both)
    if not kept:
        raise BadRecord(
            f"it has {longest} tokens; cut to --max-length {config.max_length} no label is left"
        )
    cut = [Tokens(ids=t.ids[: config.max_length], spans=first_labels(t.spans, kept)) for t in both]
    return replace(rendered, tokens=cut[0], student=cut[1] if rendered.student else None)


def _require_room(rendered: Rendered, config: LabelConfig) -> None:
    """Refuse a prompt that leaves no room for --max-tokens: it is never cut."""
    for whose, tokens in (("the", rendered.tokens), ("the student's", rendered.student)):
        if tokens is None:
            continue
        length = len(tokens.ids)
        if not length:
            raise BadRecord(f"{whose} prompt is empty")
        if length + config.max_tokens > config.max_length:
            raise BadRecord(
                f"{whose} prompt has {length} tokens, with --max-tokens "
                f"{length + config.max_tokens}, more than --max-length {config.max_length}"
            )


def _sequence(record: Record, config: LabelConfig, rendered: Rendered, chunk: int = 0) -> Sequence:
    tokens, student = rendered.tokens, rendered.student
    if student == tokens:
        student = None
    generated = config.max_tokens * config.samples
    return Sequence(
        id=_id(record, config),
        chunk=chunk,
        source=record.source,
        meta=_meta(record, {*rendered.columns, config.id_column}),
        prompt=rendered.prompt,
        input_ids=tokens.ids,
        spans=tokens.spans,
        n_labels=count_labels(tokens.spans) if config.mode == "score" else generated,
        parent_id=record.parent_id,
        student_input_ids=None if student is None else student.ids,
        student_spans=None if student is None else student.spans,
        templated=rendered.templated,
    )


def _id(record: Record, config: LabelConfig) -> str:
    own = record.columns.get(config.id_column)
    return record.id if own is None else str(own)


def _meta(record: Record, used: set[str]) -> str | None:
    rest = {name: value for name, value in record.columns.items() if name not in used}
    return json.dumps(rest, ensure_ascii=False, default=str) if rest else None
