"""The decoder layers of a model: find them, run a model with some of them, remove the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import SoftshardsError

LAYER_LISTS = ("layers", "h")
"""Attributes under which architectures keep their decoder layers."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers.

    Raises:
        SoftshardsError: the model keeps them elsewhere than in `layers` or `h`.
    """
    base = _base(model)
    count = _text_config(model).num_hidden_layers
    for name in LAYER_LISTS:
        stack = getattr(base, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack) == count:
            return stack
    raise SoftshardsError(f"no list of decoder layers was found in {type(base).__name__}")


@contextmanager
def replaced_layers(
    model: PreTrainedModel, layers: Sequence[nn.Module], numbers: Sequence[int]
) -> Iterator[None]:
    """Run a model with other layers inside the block; its own are back afterwards.

    Args:
        layers: the layers to run with.
        numbers: for each, the number of the model's own layer whose settings it takes.
    """
    own = list(decoder_layers(model))
    before = _per_layer_settings(_text_config(model), len(own))
    try:
        _replace(model, layers, {key: [v[i] for i in numbers] for key, v in before.items()})
        yield
    finally:
        _replace(model, own, before)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Remove all layers but those with the given numbers."""
    own = decoder_layers(model)
    before = _per_layer_settings(_text_config(model), len(own))
    per_layer = {key: [values[i] for i in kept] for key, values in before.items()}
    _replace(model, [own[i] for i in kept], per_layer)


def _base(model: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.base_model)


def _text_config(model: PreTrainedModel) -> PretrainedConfig:
    config: PretrainedConfig = _base(model).config.get_text_config()
    return config


def _replace(
    model: PreTrainedModel, layers: Sequence[nn.Module], per_layer: Mapping[str, list[object]]
) -> None:
    base = _base(model)
    name = next(n for n in LAYER_LISTS if isinstance(getattr(base, n, None), nn.ModuleList))
    setattr(base, name, nn.ModuleList(layers))
    config = _text_config(model)
    config.num_hidden_layers = len(layers)
    for key, values in per_layer.items():
        setattr(config, key, values)


def _per_layer_settings(config: PretrainedConfig, count: int) -> dict[str, list[object]]:
    """Return the settings that are lists with one value per layer, such as `layer_types`."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count and count > 1
    }
