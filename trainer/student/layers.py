"""The parts of a model: its text model and decoder layers; run with some of them, remove others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import SoftshardsError


def model_body(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its output head: it gives the final hidden states."""
    body = model.base_model
    if body is model:  # Llama 4 names another attribute as its body than the one it has
        body = getattr(model, "model", model)
    return cast(PreTrainedModel, body)


def text_model(model: PreTrainedModel) -> nn.Module:
    """Return the body, or the part of it that reads text, where others read images or sound."""
    body = model_body(model)
    if model.config.get_text_config() is model.config:
        return body
    part: nn.Module = body.get_decoder()
    return part


def freeze_other_parts(model: PreTrainedModel) -> list[str]:
    """Freeze what text does not pass through, such as a vision tower; return the names of parts."""
    used = {
        id(p)
        for part in (text_model(model), model.get_output_embeddings())
        for p in part.parameters()
    }
    others = {name: p for name, p in model.named_parameters() if id(p) not in used}
    for parameter in others.values():
        parameter.requires_grad_(False)
    body = f"{model.base_model_prefix}."
    return sorted({name.removeprefix(body).split(".")[0] for name in others})


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers: the first list with as many modules as the model has layers.

    Models that pass a list several times count its layers as often: then the longest list.

    Raises:
        SoftshardsError: the model has no list of modules.
    """
    try:
        return _find_layers(model)[2]
    except SoftshardsError:
        lists = [part for part in text_model(model).modules() if isinstance(part, nn.ModuleList)]
        if not lists:
            raise
        return max(lists, key=len)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the activations of every layer in the backward pass.

    Raises:
        SoftshardsError: the architecture does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise SoftshardsError(
            f"--gradient-checkpointing: {type(model).__name__} does not support it",
            hint="leave the flag out, or lower --pack-tokens",
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _find_layers(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds the list of layers, the list's name there, and the list."""
    body = text_model(model)
    count = _text_config(model).num_hidden_layers
    for parent in body.modules():
        for name, stack in parent.named_children():
            if isinstance(stack, nn.ModuleList) and len(stack) == count:
                return parent, name, stack
    raise SoftshardsError(f"no list of decoder layers was found in {type(body).__name__}")


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


def _text_config(model: PreTrainedModel) -> PretrainedConfig:
    config: PretrainedConfig = model_body(model).config.get_text_config()
    return config


def _replace(
    model: PreTrainedModel, layers: Sequence[nn.Module], per_layer: Mapping[str, list[object]]
) -> None:
    parent, name, _ = _find_layers(model)
    setattr(parent, name, nn.ModuleList(layers))
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
