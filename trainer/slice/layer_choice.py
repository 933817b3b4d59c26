"""Choose the layers that a model misses least: remove one after the other, and measure the KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.console import ProgressBar
from trainer.data.collate import Batch
from trainer.losses.batch_loss import label_losses
from trainer.slice.slice_result import Removal
from trainer.student.layers import decoder_layers, replaced_layers
from trainer.student.student import Student


class _Replay(nn.Module):
    """Stands in for a layer: returns the stored output of the layers before it."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.output = torch.empty(0)
        for name in ("attention_type", "layer_type", "is_sliding"):
            if hasattr(replaced, name):
                setattr(self, name, getattr(replaced, name))

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


def choose_layers(
    student: Student, batches: list[Batch], keep: int, candidates: int
) -> tuple[list[int], list[Removal]]:
    """Remove one layer after the other, each time the one that is missed least.

    Only the `candidates` layers of least block influence, 1 - cos(input, output) (ShortGPT, arXiv
    2403.03853), are measured: by the KL to the labels without them.

    Returns:
        The numbers of the layers to keep, and the removals in their order.
    """
    stack = list(decoder_layers(student.model))
    kept = list(range(len(stack)))
    removals: list[Removal] = []
    with ProgressBar("slice", (len(stack) - keep) * candidates) as progress:
        while len(kept) > keep:
            inputs, influence = _inputs(student, batches, stack, kept)
            places = sorted(range(len(kept)), key=lambda i: influence[i])[:candidates]
            tried: dict[int, float] = {}
            for place in places:
                replay = _Replay(stack[kept[place]])
                after = [stack[layer] for layer in kept[place + 1 :]]
                # The layers before it are the same for all: start from its stored input.
                with replaced_layers(
                    student.model, [replay, *after], [kept[place], *kept[place + 1 :]]
                ):
                    tried[kept[place]] = mean_kl(student, batches, replay, inputs[place])
                progress.advance(note=f"{len(kept)} layers, best KL {min(tried.values()):.3f}")
            progress.advance(candidates - len(places))
            best = min(tried, key=lambda layer: (tried[layer], layer))
            removal = Removal(
                layer=best,
                kl=tried[best],
                tried=tried,
                block_influence={kept[i]: influence[i] for i in places},
            )
            removals.append(removal)
            kept.remove(best)
    return kept, removals


def _inputs(
    student: Student, batches: list[Batch], stack: list[nn.Module], kept: list[int]
) -> tuple[list[list[Tensor]], list[float]]:
    """Return each kept layer's input per batch, and its block influence averaged over tokens."""
    inputs: list[list[Tensor]] = [[] for _ in kept]
    influence, tokens = [0.0] * len(kept), 0

    def note(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            inputs[place].append(before)
            cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
            influence[place] += float((1 - cosine).sum())

        return hook

    layers = [stack[layer] for layer in kept]
    hooks = [
        layer.register_forward_hook(note(place), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    try:
        with replaced_layers(student.model, layers, kept):
            for batch in batches:
                student.hidden(batch)
                tokens += batch.input_ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, [value / tokens for value in influence]


def mean_kl(
    student: Student,
    batches: list[Batch],
    replay: _Replay | None = None,
    outputs: list[Tensor] | None = None,
) -> float:
    """Return the mean KL to the labels; `replay` returns the output that is stored per batch."""
    total, count = 0.0, 0
    for index, batch in enumerate(batches):
        if replay is not None and outputs is not None:
            replay.output = outputs[index]
        kl, _ = label_losses(student(batch), batch)
        total, count = total + float(kl.double().sum()), count + len(kl)
    return total / max(1, count)
