"""A head with a LoRA adapter on it: the op takes both factors, and never makes their product.

z = x W^T + sum over adapters of s (dropout(x) A^T) B^T   (Hu et al., arXiv 2106.09685)
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.ops import linear_label_logprobs


class LoraLabelHead(LoraLinear):
    """peft's LoRA layer around a linear `lm_head`."""

    def forward(
        self, x: Tensor, ids: Tensor | None = None, target: Tensor | None = None, **settings: Any
    ) -> Any:
        """Logits [..., V] without `ids`, else what `linear_label_logprobs` returns."""
        if ids is None:
            return super().forward(x)
        active = [] if self.disable_adapters or self.merged else self.active_adapters
        names = [name for name in active if name in self.lora_A]
        low = [self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name] for name in names]
        adapters: Any = self.lora_B
        up = [adapters[name].weight for name in names]
        base: Any = self.get_base_layer()
        return linear_label_logprobs(
            x,
            base.weight,
            ids,
            target=target,
            bias=base.bias,
            low_rank=(torch.cat(low, 1), torch.cat(up, 1)) if names else None,
            **settings,
        )


def as_lora_label_head(head: Any) -> LoraLabelHead:
    """Turn peft's wrapper of a head into a label head.

    Raises:
        SoftshardsError: the adapter is more than a plain LoRA on a plain linear layer.
    """
    plain = type(head) in (LoraLinear, LoraLabelHead) and isinstance(
        head.get_base_layer(), nn.Linear
    )
    variants = dict(getattr(head, "lora_variant", {}))  # DoRA and the like
    biased = any(getattr(b, "bias", None) is not None for b in getattr(head, "lora_B", {}).values())
    if not plain or variants or biased:
        raise SoftshardsError(
            f"the adapter on the output head is a {type(head).__name__} of a kind that the fused "
            "head does not know",
            hint="leave lm_head out of the adapter, or put a plain LoRA on it",
        )
    head.__class__ = LoraLabelHead
    return head
