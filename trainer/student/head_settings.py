"""The settings of a model's output head, as `linear_label_logprobs` takes them."""

from __future__ import annotations

from typing import TypedDict


class HeadSettings(TypedDict, total=False):
    """Keyword arguments of `linear_label_logprobs` that stay the same over all batches."""

    valid_vocab: int
    scale: float
    softcap: float | None
    chunk_bytes: int | None
    unique_ids: bool
