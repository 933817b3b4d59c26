"""A head with a LoRA adapter on it: the op takes both factors, and never forms their product.

z = x W^T + sum over adapters of s (dropout(x) A^T) B^T   (Hu et al., arXiv 2106.09685)
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.ops import LabelLogprobs, linear_label_logprobs
from trainer.student.head_settings import HeadSettings


class LoraLabelHead(LoraLinear):
    """The LoRA layer of peft around a linear `lm_head`."""

    def forward(  # type: ignore[override]  # given ids, it returns their log-probabilities
        self,
        x: Tensor,
        ids: Tensor | None = None,
        target: Tensor | None = None,
        **settings: Unpack[HeadSettings],
    ) -> Tensor | LabelLogprobs:
        """Return logits [..., V] without `ids`, else the result of `linear_label_logprobs`."""
        if ids is None:
            logits: Tensor = super().forward(x)
            return logits
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


def convert_lora_head(head: Any) -> LoraLabelHead:
    """Turn the wrapper that peft puts around a head into a label head.

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
            f"the fused head does not support the adapter on the output head, a "
            f"{type(head).__name__}",
            hint="leave lm_head out of the adapter, or put a plain LoRA on it",
        )
    head.__class__ = LoraLabelHead
    converted: LoraLabelHead = head
    return converted
