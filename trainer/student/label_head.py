"""Output heads that, given ids, return log-probabilities of those ids instead of all logits.

`convert_head` assigns a new `__class__`: parameters, names and weight tying stay as they are, so
checkpoints do too. The op runs inside the head's own forward: under FSDP the weight is whole only
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.ops import LabelLogprobs, linear_label_logprobs
from trainer.student.exact_target import ExactTarget, exact_divergences
from trainer.student.head_settings import HeadSettings

if TYPE_CHECKING:
    from trainer.student.lora_head import LoraLabelHead


class LabelHead(nn.Linear):
    """A linear `lm_head`."""

    def forward(  # type: ignore[override]  # given ids, it returns their log-probabilities
        self,
        input: Tensor,
        ids: Tensor | None = None,
        target: Tensor | None = None,
        exact: tuple[ExactTarget, Tensor] | None = None,
        **settings: Unpack[HeadSettings],
    ) -> Tensor | LabelLogprobs | tuple[Tensor, ...]:
        """Return logits [..., V], or the result of `linear_label_logprobs` if there are `ids`.

        With `exact`, a target and the teacher's states, return what `exact_divergences` does.
        """
        if exact is not None:
            return exact_divergences(*exact, input, self.weight, bias=self.bias, **settings)
        if ids is None:
            return super().forward(input)
        return linear_label_logprobs(
            input, self.weight, ids, target=target, bias=self.bias, **settings
        )


def convert_head(head: nn.Module) -> LabelHead | LoraLabelHead:
    """Turn a model's output head, with or without a LoRA adapter of peft on it, into a label head.

    Raises:
        SoftshardsError: it is not a plain linear layer, or its adapter is not a plain LoRA.
    """
    if type(head) is nn.Linear:
        head.__class__ = LabelHead
    if isinstance(head, LabelHead):
        return head
    if type(head).__module__.startswith("peft.") or hasattr(head, "lora_A"):
        from trainer.student.lora_head import convert_lora_head  # peft is an extra

        return convert_lora_head(head)
    raise SoftshardsError(
        f"the output head is a {type(head).__name__}, not a plain linear layer",
        hint="use a student with an ordinary, unquantized lm_head",
    )
