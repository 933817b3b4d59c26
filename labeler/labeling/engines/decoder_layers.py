"""The decoder layers of a language model, and the hidden states that are named after them.

`final` is what the head reads, after the final norm. `layer_K` is the residual stream after decoder
layer K, counted from 0; for the last layer that is before the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from schemas.errors import SoftshardsError
from schemas.file_names import FINAL


def inner_layers(names: Sequence[str]) -> dict[str, int]:
    """Return the numbers of the decoder layers among some states, by name."""
    return {name: int(name.removeprefix("layer_")) for name in names if name != FINAL}


def decoder_layers(model: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """Return the module that a language model's decoder layers are part of, and the layers.

    A vision or audio tower may have as many; the decoder's layers have more parameters. Lists
    inside others, such as experts or the halves of a layer, do not count.

    Args:
        model: a causal language model of vLLM or transformers.
        count: number of its decoder layers.

    Raises:
        SoftshardsError: it has no such list of layers.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in lists.items()
        if len(module) == count and not any(name.startswith(f"{other}.") for other in lists)
    }
    if not found:
        raise SoftshardsError(f"the model has no list of {count} decoder layers")
    name = max(found, key=lambda one: found[one])
    layers = model.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    return model.get_submodule(name.rpartition(".")[0]), layers
