"""A planned row as Python values."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class SpanFields(TypedDict):
    """A span as Parquet stores it."""

    start: int
    stop: int
    kind: str


class PlannedRow(TypedDict):
    """The columns of `schemas.arrow.PLAN_SCHEMA` that labeling and writing read."""

    id: str
    chunk: int
    parent_id: str | None
    source: str
    meta: str | None
    prompt: str | None
    input_ids: list[int]
    spans: list[SpanFields]
    student_input_ids: list[int] | None
    student_spans: list[SpanFields] | None
    asked_ids: NotRequired[list[list[int]]]
