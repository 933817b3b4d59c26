"""Ways to keep packed documents apart in a model, the fastest first."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from schemas.errors import SoftshardsError
from trainer.data.collate import Attention
from trainer.student.document_attention import DOCUMENT_ATTENTION

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


class AttentionWay(NamedTuple):
    """A layout of the documents, and the attention of transformers that it is for."""

    attention: Attention
    implementation: str


def choose_attention(model: PreTrainedModel) -> Attention:
    """Choose the way to keep packed documents apart in a model.

    Raises:
        SoftshardsError: a layer carries state from token to token, whatever the mask.
    """
    text = model.config.get_text_config()
    unnamed = "recurrent" if getattr(model, "_is_stateful", False) else "full_attention"
    kinds = set(getattr(text, "layer_types", None) or {unnamed})
    if others := sorted(kinds - PACKABLE_LAYERS):
        raise SoftshardsError(
            f"the student, a {type(model).__name__}, has {', '.join(others)} layers, which would "
            "leak from one packed document into the next",
            hint="use a student whose layers are all full or sliding attention",
        )
    if text._attn_implementation == "flash_attention_2":
        return "varlen"
    if getattr(text, "sliding_window", None) is not None or kinds != {"full_attention"}:
        return "positions"
    if text._attn_implementation == "eager":
        return "additive"
    return "documents" if text._attn_implementation == DOCUMENT_ATTENTION else "mask"


def other_ways(model: PreTrainedModel) -> list[AttentionWay]:
    """Return the ways that a model may be packed in, where `choose_attention`'s is not right.

    Derived masks know sliding windows; an explicit one would override them.
    """
    derived: list[Attention] = ["positions", "layer_masks"]
    has_windows = choose_attention(model) == "positions"
    sdpa: list[Attention] = derived if has_windows else ["mask", *derived]
    eager: list[Attention] = derived if has_windows else ["additive", *derived]
    ways = [AttentionWay(attention, "eager") for attention in eager]
    if getattr(model, "_supports_sdpa", False):
        ways = [*(AttentionWay(attention, "sdpa") for attention in sdpa), *ways]
    return ways


def layer_masks(model: PreTrainedModel, position_ids: Tensor) -> Any:
    """Return what transformers derives from position ids: a mask, or one for each kind of layer."""
    like = torch.empty(*position_ids.shape, 0, device=position_ids.device)  # [1, T, 0]
    derive = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    return derive(
        config=model.config,
        inputs_embeds=like,
        attention_mask=None,
        past_key_values=None,
        position_ids=position_ids,
    )


def attention_implementation() -> str:
    """Return the fastest attention of transformers that this machine has."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    usable = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "flash_attention_2" if usable and is_flash_attn_2_available() else "sdpa"
