"""The settings of a model's output head, as the ops of `trainer.ops` take them. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from trainer.ops.dense_divergence import Divergence


class HeadSettings(TypedDict, total=False):
    """Keyword arguments of `linear_label_logprobs` that are not tensors."""

    valid_vocab: int
    scale: float
    softcap: float | None
    chunk_bytes: int | None
    unique_ids: bool
    temperature: float


class ExactLoss(NamedTuple):
    """A divergence over all ids: arguments of `linear_divergence`."""

    divergence: Divergence
    mixing: float = 0.5
    temperature: float = 1.0
