"""The fused heads: losses over the vocabulary without ever holding [n, V] logits."""

from trainer.ops.dense_divergence import TeacherHead, linear_divergence
from trainer.ops.label_logprobs import LabelLogprobs, linear_label_logprobs

__all__ = ["LabelLogprobs", "TeacherHead", "linear_divergence", "linear_label_logprobs"]
