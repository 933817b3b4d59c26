"""Narrow the feed-forward blocks of Llama-style models: keep the neurons that matter most.

A block computes down(act(gate(x)) * up(x)). Neuron j writes its activation a_j times column j of
`down`, so what it adds is at most mean |a_j| times the norm of that column, which is the score here
(the activations' half is that of Minitron, arXiv 2407.14679; the norm's makes it one of output).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.data.collate import Batch
from trainer.student.layers import decoder_layers
from trainer.student.student import Student

MULTIPLE = 32
"""The width kept is a multiple of this where the teacher's is: odd widths are slow on GPUs."""


def narrow(student: Student, batches: list[Batch], share: float) -> dict[str, Any]:
    """Keep a share of each feed-forward block's neurons, in place, and say what was kept.

    Args:
        batches: tokens to measure activations on; labels play no part.
        share: of the neurons, above 0 and at most 1.

    Returns:
        The widths before and after, and for each layer the share of all scores that was kept.

    Raises:
        SoftshardsError: the blocks are not of the Llama or Qwen kind.
    """
    blocks = feed_forward_blocks(student)
    before = blocks[0].down_proj.in_features
    width = _width(before, share)
    scores = neuron_scores(student, blocks, batches)
    kept_shares = []
    for block, score in zip(blocks, scores):
        kept = score.topk(width).indices.sort().values
        kept_shares.append(float(score[kept].sum() / score.sum().clamp_min(1e-30)))
        for name in ("gate_proj", "up_proj"):
            _cut(getattr(block, name), rows=kept)
        _cut(block.down_proj, columns=kept)
        if hasattr(block, "intermediate_size"):
            block.intermediate_size = width
    student.model.config.get_text_config().intermediate_size = width
    return {"before": before, "after": width, "kept_scores": kept_shares}


def feed_forward_blocks(student: Student) -> list[Any]:
    """Each decoder layer's block of `gate_proj`, `up_proj` and `down_proj`.

    Raises:
        SoftshardsError: a layer has another kind of block, or their widths differ.
    """
    blocks: list[Any] = [getattr(layer, "mlp", None) for layer in decoder_layers(student.model)]
    width = getattr(student.model.config.get_text_config(), "intermediate_size", None)
    for number, block in enumerate(blocks):
        parts = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if (
            not all(type(part) is nn.Linear for part in parts)
            or block.down_proj.in_features != width
        ):
            raise SoftshardsError(
                f"--ffn-keep: layer {number} has a {type(block).__name__}, not a dense block of "
                f"gate_proj, up_proj and down_proj of {width} neurons",
                hint="leave --ffn-keep out, or take a model of the Llama, Qwen or Mistral kind "
                "(no mixture of experts)",
            )
    return blocks


def neuron_scores(student: Student, blocks: list[Any], batches: list[Batch]) -> list[Tensor]:
    """For each block float64 [neurons]: mean |activation| over tokens times its column's norm."""
    sums = [torch.zeros(block.down_proj.in_features, dtype=torch.float64) for block in blocks]
    tokens = sum(batch.input_ids.numel() for batch in batches)

    def note(number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor]) -> None:
            sums[number] += args[0].flatten(0, -2).abs().sum(0, dtype=torch.float64).cpu()

        return hook

    hooks = [b.down_proj.register_forward_pre_hook(note(i)) for i, b in enumerate(blocks)]
    try:
        for batch in batches:
            student.hidden(batch)
    finally:
        for hook in hooks:
            hook.remove()
    norms = [block.down_proj.weight.double().norm(dim=0).cpu() for block in blocks]
    return [total / tokens * norm for total, norm in zip(sums, norms)]


def _width(before: int, share: float) -> int:
    unit = MULTIPLE if before % MULTIPLE == 0 else 1
    return max(unit, round(before * share / unit) * unit)


def _cut(linear: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    weight = linear.weight.data
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data[rows.to(weight.device)])
    if columns is not None:
        weight = weight[:, columns.to(weight.device)].contiguous()
    linear.weight = nn.Parameter(weight)
    linear.out_features, linear.in_features = weight.shape
