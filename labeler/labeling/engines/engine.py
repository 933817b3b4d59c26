"""The protocol of engines: requests in, labels out. A run is the same with any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from labeler.labeling.rendering.spans import Span
from schemas import Labels, SoftshardsError

if TYPE_CHECKING:
    from labeler.labeling.engines.fit_states import OutputHead


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to label.

    Attributes:
        index: its place in the unit, by which the caller knows it; sample: its generation.
        input_ids: the sequence (score) or the prompt (generate).
        spans: where labels are wanted (score only).
        seed: seed of its generation.
        asked: ids to label beside the most likely ones, a list for each label (score only).
    """

    index: int
    sample: int
    input_ids: list[int]
    spans: tuple[Span, ...]
    seed: int
    asked: list[list[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """A labeled sequence.

    Attributes:
        request: the caller's request.
        input_ids: the whole sequence, with generated tokens.
        spans: where the labels are.
        labels: the labels, in span order.
        finish_reason: `stop` or `length` for generations, else None.
    """

    request: Request
    input_ids: list[int]
    spans: tuple[Span, ...]
    labels: Labels
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A sequence the engine could not label, and why; becomes a reject."""

    request: Request
    reason: str


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Facts about a loaded engine, for identity (dtypes) and provenance (the rest)."""

    name: str
    version: str
    device: str
    dtype: str
    head_dtype: str
    tail_source: str
    entropy_source: str
    settings: dict[str, object]


class EngineOutOfMemory(SoftshardsError):
    """The engine ran out of memory; it can be loaded again with smaller steps."""


class EngineFailed(SoftshardsError):
    """The engine broke while it labeled; another one, perhaps on another device, may not."""


class Engine(Protocol):
    """A loaded teacher: `VllmEngine`, `ServedEngine` or `TransformersEngine`."""

    facts: EngineFacts

    def run(self, requests: Sequence[Request]) -> Iterator[Labeled | Failed]:
        """Label `requests`; yield each as it finishes, in any order."""
        ...

    def output_head(self) -> OutputHead:
        """Return the teacher's output projection, as it maps the states `final` to logits.

        Raises:
            SoftshardsError: it cannot be exported, or no states are captured.
        """
        ...

    def close(self) -> None:
        """Free the teacher's memory."""
        ...
