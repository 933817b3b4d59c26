"""Attention of packed documents, each computed apart from the others.

With an explicit mask, SDPA computes all T x T scores and discards most. Documents computed one by
one, causally, cost the sum of their squares over two: at 4 documents of 256 tokens a quarter of the
time on a CPU. On a GPU, in 16 bits, flash attention does the same in one kernel; in float32 many
short documents are computed with a mask after all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FLASH_WIDTH = 256
"""Widest heads of flash attention."""
MASKED_TOKENS = 1024
"""On a GPU without it, n documents of T tokens in all get a mask where n > (T / this)^2:
calls for each of them cost more there than what the mask discards (measured on an H100)."""


def _find_varlen() -> Callable[..., Tensor] | None:
    """Return torch's causal flash attention of documents of any lengths, from torch 2.11 on."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = signature(varlen_attn).parameters
    if "window_size" not in parameters:
        return None
    # Newer versions ask before they take fewer heads of keys than of queries.
    settings: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in parameters else {}
    return cast(Callable[..., Tensor], partial(varlen_attn, window_size=(-1, 0), **settings))


varlen_attn = _find_varlen()
DOCUMENT_ATTENTION = "softshards_documents"


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    document_lengths: list[int] | None = None,
    **settings: Any,  # of any attention function of transformers
) -> tuple[Tensor, None]:
    """Return the attention of [1, heads, T, width] each, of documents where lengths are given."""
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    dtype = _flash_dtype(query, key, value, settings)
    if dtype is not None and varlen_attn is not None:
        starts, longest = _starts(tuple(document_lengths), query.device), max(document_lengths)
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))  # [T, heads, width]
        output = varlen_attn(
            q, k, v, starts, starts, longest, longest, scale=settings.get("scaling")
        )
        return output[None], None
    if query.is_cuda and len(document_lengths) > (query.shape[2] / MASKED_TOKENS) ** 2:
        mask = _mask(tuple(document_lengths), query.device)
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    pieces = zip(
        *(torch.split(x, document_lengths, dim=2) for x in (query, key, value)), strict=True
    )
    outputs = [sdpa_attention_forward(module, q, k, v, None, **settings)[0] for q, k, v in pieces]
    return torch.cat(outputs, dim=1), None


def suits_this_machine() -> bool:
    """Return True on a CPU and on CUDA; on other accelerators a mask is used."""
    return torch.cuda.is_available() or not torch.accelerator.is_available()


def use_document_attention(model: PreTrainedModel) -> bool:
    """Switch a model to document attention; return False if its architecture does not allow it."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    return True


def _flash_dtype(
    query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]
) -> torch.dtype | None:
    """Return the dtype that flash attention computes in; None where it cannot compute this."""
    if not query.is_cuda:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    fits = (
        dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= FLASH_WIDTH
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and not settings.get("dropout")
        and settings.get("position_bias") is None
    )
    return dtype if fits else None


@lru_cache(maxsize=1)  # every layer of a pack asks
def _mask(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return bool [1, 1, T, T]: token q sees token k of the same document if k <= q."""
    numbers = torch.repeat_interleave(torch.tensor(lengths)).pin_memory()
    numbers = numbers.to(device, non_blocking=True)
    return (numbers[:, None] == numbers).tril_()[None, None]


@lru_cache(maxsize=1)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int32 [documents + 1]: where each document begins, and where the last one ends."""
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return starts.pin_memory().to(device, non_blocking=True)
