"""The fused head: student log-probabilities of labels without ever holding [n, V] logits."""

from trainer.ops.label_logprobs import LabelLogprobs, linear_label_logprobs

__all__ = ["LabelLogprobs", "linear_label_logprobs"]
