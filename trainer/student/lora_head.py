"""A head with a LoRA adapter on it: the op takes both factors, and never forms their product.

z = x W^T + sum over adapters of s (dropout(x) A^T) B^T   (Hu et al., arXiv 2106.09685)
"""

from __future__ import annotations

from typing import Unpack, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.ops import LabelLogprobs, linear_label_logprobs
from trainer.student.exact_target import ExactTarget, exact_divergences
from trainer.student.head_settings import HeadSettings


class LoraLabelHead(LoraLinear):
    """The LoRA layer of peft around a linear `lm_head`."""

    def forward(  # type: ignore[override]  # given ids, it returns their log-probabilities
        self,
        x: Tensor,
        ids: Tensor | None = None,
        target: Tensor | None = None,
        exact: tuple[ExactTarget, Tensor] | None = None,
        **settings: Unpack[HeadSettings],
    ) -> Tensor | LabelLogprobs | tuple[Tensor, ...]:
        """Return what `LabelHead` returns."""
        if ids is None and exact is None:
            logits: Tensor = super().forward(x)
            return logits
        active = [] if self.disable_adapters or self.merged else self.active_adapters
        names = [name for name in active if name in self.lora_A]
        low = [self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name] for name in names]
        up = [cast(nn.Linear, self.lora_B[name]).weight for name in names]
        base = cast(nn.Linear, self.get_base_layer())
        low_rank = (torch.cat(low, 1), torch.cat(up, 1)) if names else None
        if exact is not None:
            return exact_divergences(
                *exact, x, base.weight, bias=base.bias, low_rank=low_rank, **settings
            )
        assert ids is not None
        return linear_label_logprobs(
            x,
            base.weight,
            ids,
            target=target,
            bias=base.bias,
            low_rank=low_rank,
            **settings,
        )


def convert_lora_head(head: nn.Module) -> LoraLabelHead:
    """Turn the wrapper that peft puts around a head into a label head.

    Raises:
        SoftshardsError: the adapter is more than a plain LoRA on a plain linear layer.
    """
    if not isinstance(head, LoraLinear) or not _is_plain(head):
        raise SoftshardsError(
            "the fused head does not support the adapter on the output head, a "
            f"{type(head).__name__}",
            hint="leave lm_head out of the adapter, or put a plain LoRA on it",
        )
    head.__class__ = LoraLabelHead
    return cast(LoraLabelHead, head)


def _is_plain(head: LoraLinear) -> bool:
    if type(head) not in (LoraLinear, LoraLabelHead):
        return False
    variants = dict(getattr(head, "lora_variant", {}))  # DoRA and the like
    has_bias = any(getattr(b, "bias", None) is not None for b in head.lora_B.values())
    return isinstance(head.get_base_layer(), nn.Linear) and not variants and not has_bias
