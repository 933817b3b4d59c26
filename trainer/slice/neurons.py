"""Narrow the feed-forward blocks of Llama-style models: keep the neurons that matter most.

A block computes down(act(gate(x)) * up(x)). Neuron j adds its activation a_j times column j of
`down`, at most mean |a_j| times the norm of that column. This product is the score (the mean
activation is from Minitron, arXiv 2407.14679; the norm turns it into a score of output).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from schemas.errors import SoftshardsError
from trainer.data.collate import Batch
from trainer.slice.slice_result import Widths
from trainer.student.layers import decoder_layers
from trainer.student.student import Student

MULTIPLE = 32
"""The kept width is a multiple of this if the teacher's is: odd widths are slow on GPUs."""


class Block(Protocol):
    """A feed-forward block of the Llama or Qwen kind."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


def narrow(student: Student, batches: list[Batch], share: float) -> Widths:
    """Keep a share of each feed-forward block's neurons, in place.

    Args:
        student: the model.
        batches: tokens to measure activations on; labels play no part.
        share: of the neurons, above 0 and at most 1.

    Raises:
        SoftshardsError: the blocks are not of the Llama or Qwen kind.
    """
    blocks = feed_forward_blocks(student)
    before = blocks[0].down_proj.in_features
    width = _width(before, share)
    scores = neuron_scores(student, blocks, batches)
    kept_scores = []
    for block, score in zip(blocks, scores):
        kept = score.topk(width).indices.sort().values
        kept_scores.append(float(score[kept].sum() / score.sum().clamp_min(1e-30)))
        for linear in (block.gate_proj, block.up_proj):
            _cut(linear, rows=kept)
        _cut(block.down_proj, columns=kept)
        if hasattr(block, "intermediate_size"):
            block.intermediate_size = width
    student.model.config.get_text_config().intermediate_size = width
    return Widths(before=before, after=width, kept_scores=kept_scores)


def feed_forward_blocks(student: Student) -> list[Block]:
    """Return each decoder layer's block of `gate_proj`, `up_proj` and `down_proj`.

    Raises:
        SoftshardsError: a layer has another kind of block, or their widths differ.
    """
    blocks = [getattr(layer, "mlp", None) for layer in decoder_layers(student.model)]
    width = getattr(student.model.config.get_text_config(), "intermediate_size", None)
    for number, block in enumerate(blocks):
        parts = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        down = parts[-1]
        if not all(type(part) is nn.Linear for part in parts) or (
            isinstance(down, nn.Linear) and down.in_features != width
        ):
            raise SoftshardsError(
                f"--ffn-keep: layer {number} has a {type(block).__name__}, not a dense block of "
                f"gate_proj, up_proj and down_proj with {width} neurons",
                hint="leave --ffn-keep out, or take a model of the Llama, Qwen or Mistral kind "
                "(no mixture of experts)",
            )
    return cast(list[Block], blocks)


def neuron_scores(student: Student, blocks: list[Block], batches: list[Batch]) -> list[Tensor]:
    """Return the scores of each block's neurons: mean |activation| times its column's norm.

    Returns:
        float64 [neurons] per block.
    """
    sums = [torch.zeros(block.down_proj.in_features, dtype=torch.float64) for block in blocks]
    tokens = sum(batch.input_ids.numel() for batch in batches)

    def note(number: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
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
    """Keep some rows, or some columns, of a layer's weight."""
    weight = linear.weight.data
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data[rows.to(weight.device)])
    if columns is not None:
        weight = weight[:, columns.to(weight.device)].contiguous()
    linear.weight = nn.Parameter(weight)
    linear.out_features, linear.in_features = weight.shape
