"""slice.json: how a sliced student was made. No torch."""

from __future__ import annotations

from pydantic import Field, JsonValue

from schemas import LabelSet, SoftshardsError
from schemas.fingerprint import weights_digest
from trainer.record import Record
from trainer.slice.slice_config import SliceConfig

SLICE = "slice.json"


class Removal(Record):
    """The removal of a layer.

    Attributes:
        layer: its number in the teacher.
        kl: KL to the labels without it, in nats.
        tried: the same for each candidate.
        block_influence: 1 - cos(input, output) of each candidate.
    """

    layer: int
    kl: float
    tried: dict[int, float]
    block_influence: dict[int, float]


class Widths(Record):
    """Neurons per feed-forward block.

    Attributes:
        kept_scores: for each layer the share of all scores that was kept.
    """

    before: int
    after: int
    kept_scores: list[float]


class SliceResult(Record):
    """slice.json: how the student was made.

    Attributes:
        asked: the settings and digests that decide the student.
        layers: the teacher's layers that were kept, `of` how many.
        ffn: the widths of the feed-forward blocks, if they were narrowed.
        kl: KL to the teacher's labels before any training, in nats.
        removals: the layers in the order of their removal, if measurements chose them.
        from_the_labels_teacher: the teacher made the labels; None if nothing tells.
        teacher, labels: where they were.
    """

    asked: dict[str, JsonValue]
    layers: list[int]
    of: int
    ffn: Widths | dict[str, JsonValue] = Field(default_factory=dict)
    kl: float
    removals: list[Removal]
    sample_labels: int
    from_the_labels_teacher: bool | None = None
    teacher: str | None = None
    labels: str | None = None


def asked_settings(config: SliceConfig, labels: LabelSet) -> dict[str, JsonValue]:
    """Return the settings and digests that decide the student."""
    try:
        teacher = weights_digest(config.teacher)
    except FileNotFoundError as error:
        raise SoftshardsError(str(error), hint="give the teacher's checkpoint folder") from error
    asked: dict[str, JsonValue] = {"teacher": teacher, "dtype": config.dtype}
    asked |= {name: getattr(config, name) for name in ("layers", "keep", "stride", "ffn_keep")}
    if config.keep is not None:
        asked["candidates"] = config.candidates
    asked |= {"sample_tokens": config.sample_tokens, "seed": config.seed}
    return asked | {"labels": {**labels.digests}}
