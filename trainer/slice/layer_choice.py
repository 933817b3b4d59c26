"""Which layers a model misses least: one is taken out after the other, and the KL measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.console import ProgressBar
from trainer.data.collate import Batch
from trainer.losses.objective import label_losses
from trainer.student.layers import decoder_layers, only_layers
from trainer.student.student import Student


class _Replay(nn.Module):
    """Stands in for a layer: gives what the layers before it gave last time."""

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
) -> tuple[list[int], list[dict[str, Any]]]:
    """Take out one layer after the other, each time the one that is missed least.

    All layers but the `candidates` of least block influence, 1 - cos(input, output) (ShortGPT,
    arXiv 2403.03853), are passed over unmeasured; the rest is measured by the KL to the labels.
    """
    stack = list(decoder_layers(student.model))
    kept = list(range(len(stack)))
    removals: list[dict[str, Any]] = []
    with ProgressBar("slice", (len(stack) - keep) * candidates) as progress:
        while len(kept) > keep:
            inputs, influence = _inputs(student, batches, stack, kept)
            ranked = sorted(range(len(kept)), key=lambda i: influence[i])[:candidates]
            tried: dict[int, float] = {}
            for place in ranked:
                replay = _Replay(stack[kept[place]])
                after = [stack[layer] for layer in kept[place + 1 :]]
                # What comes before the layer is the same for all: start from its stored input.
                with only_layers(
                    student.model, [replay, *after], [kept[place], *kept[place + 1 :]]
                ):
                    tried[kept[place]] = mean_kl(student, batches, replay, inputs[place])
                progress.advance(note=f"{len(kept)} layers, best KL {min(tried.values()):.3f}")
            progress.advance(candidates - len(ranked))
            best = min(tried, key=lambda layer: (tried[layer], layer))
            removals.append(
                {
                    "layer": best,
                    "kl": tried[best],
                    "tried": tried,
                    "block_influence": {kept[i]: influence[i] for i in ranked},
                }
            )
            kept.remove(best)
    return kept, removals


def _inputs(
    student: Student, batches: list[Batch], stack: list[nn.Module], kept: list[int]
) -> tuple[list[list[Tensor]], list[float]]:
    """Each kept layer's input a batch, and its block influence averaged over tokens."""
    inputs: list[list[Tensor]] = [[] for _ in kept]
    influence, tokens = [0.0] * len(kept), 0

    def note(place: int) -> Any:
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
        with only_layers(student.model, layers, kept):
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
    """Mean KL to the labels."""
    total, count = 0.0, 0
    for index, batch in enumerate(batches):
        if replay is not None and outputs is not None:
            replay.output = outputs[index]
        kl, _ = label_losses(student(batch), batch)
        total, count = total + float(kl.double().sum()), count + len(kl)
    return total / max(1, count)
