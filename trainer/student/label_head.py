"""Output heads that, given ids, return log-probabilities of those instead of all logits.

A head becomes one by assigning `__class__`: parameters, names and weight tying stay as they are, so
checkpoints do too. The op runs inside the head's own forward: under FSDP the weight is whole only
there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.ops import linear_label_logprobs


class LabelHead(nn.Linear):
    """A linear `lm_head`."""

    def forward(
        self,
        input: Tensor,
        ids: Tensor | None = None,
        target: Tensor | None = None,
        **settings: Any,
    ) -> Any:
        """Logits [..., V] without `ids`, else what `linear_label_logprobs` returns."""
        if ids is None:
            return super().forward(input)
        return linear_label_logprobs(
            input, self.weight, ids, target=target, bias=self.bias, **settings
        )


def as_label_head(head: Any) -> Any:
    """Turn a model's output head, with or without a LoRA adapter of peft on it, into a label head.

    Raises:
        SoftshardsError: it is no plain linear layer, or has an adapter that is no plain LoRA.
    """
    if type(head) is nn.Linear:
        head.__class__ = LabelHead
    if isinstance(head, LabelHead):
        return head
    if type(head).__module__.startswith("peft.") or hasattr(head, "lora_A"):
        from trainer.student.lora_head import as_lora_label_head  # peft is an extra

        return as_lora_label_head(head)
    raise SoftshardsError(
        f"the output head is a {type(head).__name__}, not a plain linear layer",
        hint="use a student with an ordinary, unquantized lm_head",
    )
