"""Ways to keep documents apart in a model, the fastest first."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from trainer.data.collate import Attention
from trainer.student.document_attention import DOCUMENT_ATTENTION

Packing = Literal["auto", "on", "off"]
"""Values of --packing."""

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
UNPADDABLE_LAYERS = {"indexed_attention"}
"""Layers that choose among all tokens before the mask applies, padding included."""


class AttentionWay(NamedTuple):
    """A layout of the documents, and the attention of transformers that it is for."""

    attention: Attention
    implementation: str


def leaking_layers(model: PreTrainedModel) -> list[str]:
    """Return the kinds of layers that carry state from token to token, whatever the mask."""
    text = model.config.get_text_config()
    unnamed = "recurrent" if getattr(model, "_is_stateful", False) else "full_attention"
    kinds = set(getattr(text, "layer_types", None) or {unnamed})
    return sorted(kinds - PACKABLE_LAYERS)


def choose_attention(model: PreTrainedModel) -> Attention:
    """Choose the way to keep documents apart in a model: the fastest one that suits its layers."""
    if leaking_layers(model):
        return "padded"
    text = model.config.get_text_config()
    if text._attn_implementation == "flash_attention_2":
        return "varlen"
    kinds = set(getattr(text, "layer_types", None) or {"full_attention"})
    if getattr(text, "sliding_window", None) is not None or kinds != {"full_attention"}:
        return "positions"
    if text._attn_implementation == "eager":
        return "additive"
    return "documents" if text._attn_implementation == DOCUMENT_ATTENTION else "mask"


def packed_ways(model: PreTrainedModel) -> list[AttentionWay]:
    """Return the ways that a model without leaking layers may be packed in.

    Derived masks know sliding windows; an explicit one would override them.
    """
    own = AttentionWay(choose_attention(model), model.config._attn_implementation)
    derived: list[Attention] = ["positions", "layer_masks"]
    explicit: list[list[Attention]] = [["mask"], ["additive"]]
    sdpa, eager = ([*(way if own.attention != "positions" else []), *derived] for way in explicit)
    ways = [AttentionWay(attention, "eager") for attention in eager]
    if getattr(model, "_supports_sdpa", False):
        ways = [*(AttentionWay(attention, "sdpa") for attention in sdpa), *ways]
    return [own, *(way for way in ways if way != own)]


def padded_ways(model: PreTrainedModel) -> list[AttentionWay]:
    """Return the ways that a model may be given padded documents in."""
    if UNPADDABLE_LAYERS.intersection(leaking_layers(model)):
        return []
    names = ["sdpa", "eager"] if getattr(model, "_supports_sdpa", False) else ["eager"]
    return [AttentionWay("padded", name) for name in names]


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Set a model's attention, also where transformers would only warn: older code reads it too."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
    else:
        model.config._attn_implementation = implementation


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
