"""The decoder layers of a model: find them, run with some of them, leave some out for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError

NAMES = ("layers", "h")
"""Attributes under which architectures keep their decoder layers."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers.

    Raises:
        SoftshardsError: the model keeps them elsewhere than in `layers` or `h`.
    """
    base: Any = model.base_model
    count = base.config.get_text_config().num_hidden_layers
    for name in NAMES:
        stack = getattr(base, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack) == count:
            return stack
    raise SoftshardsError(f"no list of decoder layers was found in {type(base).__name__}")


@contextmanager
def only_layers(
    model: PreTrainedModel, layers: Sequence[nn.Module], numbers: Sequence[int]
) -> Iterator[None]:
    """Run the model with these layers; `numbers` says which of the model's own they stand for."""
    own = list(decoder_layers(model))
    config = _text_config(model)
    before = {key: getattr(config, key) for key in _per_layer(config, len(own))}
    try:
        _replace(model, layers, {key: [v[i] for i in numbers] for key, v in before.items()})
        yield
    finally:
        _replace(model, own, before)


def cut_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave the other layers out for good."""
    own = decoder_layers(model)
    config = _text_config(model)
    before = {key: getattr(config, key) for key in _per_layer(config, len(own))}
    per_layer = {key: [values[i] for i in kept] for key, values in before.items()}
    _replace(model, [own[i] for i in kept], per_layer)


def _text_config(model: PreTrainedModel) -> Any:
    base: Any = model.base_model
    return base.config.get_text_config()


def _replace(
    model: PreTrainedModel, layers: Sequence[nn.Module], per_layer: dict[str, list[Any]]
) -> None:
    base: Any = model.base_model
    name = next(name for name in NAMES if isinstance(getattr(base, name, None), nn.ModuleList))
    setattr(base, name, nn.ModuleList(layers))
    config = _text_config(model)
    config.num_hidden_layers = len(layers)
    for key, values in per_layer.items():
        setattr(config, key, values)


def _per_layer(config: Any, count: int) -> list[str]:
    """Names of settings that are lists with one value a layer, such as `layer_types`."""
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count and count > 1
    ]
