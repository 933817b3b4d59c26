"""A checkpoint whose tensors are not those of its config.json is refused by their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from schemas.errors import SoftshardsError
from tests.tiny_model import make_model
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_teacher import slice_teacher
from trainer.student.load_model import load_model
from trainer.train.loop import train

Weights = dict[str, Tensor]


def edit(folder: Path, change: Callable[[Weights], object]) -> Path:
    """Change the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def llama(folder: Path, **settings: object) -> Path:
    make_model(folder, vocab_size=300, **settings)  # type: ignore[arg-type]
    return folder


def drop(*parts: str) -> Callable[[Weights], object]:
    """Return a change that drops the tensors whose names have one of these parts."""
    return lambda weights: [
        weights.pop(name) for name in list(weights) if any(part in name for part in parts)
    ]


def add(name: str, *shape: int) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
    ],
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    folder = edit(llama(tmp_path / "student", tie_word_embeddings=False), drop(name))
    with pytest.raises(SoftshardsError, match=f"the checkpoint lacks weights: {name}"):
        load_model(folder)


def test_a_missing_layer_is_named_in_short(tmp_path: Path) -> None:
    folder = edit(llama(tmp_path / "student"), drop("layers.1."))
    with pytest.raises(SoftshardsError, match=r"lacks weights: model\.layers\.1\..* and 5 more"):
        load_model(folder)


def test_one_shard_of_two_that_lacks_a_tensor(tmp_path: Path) -> None:
    """The index knows the tensor, the shard does not hold it."""
    folder = llama(tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + (i > 8)}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": files})
    )
    for file in set(files.values()):
        held = {n: weights[n] for n in names if files[n] == file and n != "model.norm.weight"}
        save_file(held, folder / file, metadata={"format": "pt"})
    with pytest.raises(SoftshardsError, match=r"lacks weights: model\.norm\.weight"):
        load_model(folder)


def test_another_shape_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = edit(llama(tmp_path / "student"), add(name, 96, 64))
    with pytest.raises(SoftshardsError, match=r"other shapes than config\.json says") as caught:
        load_model(folder)
    assert f"{name} (96, 64) instead of (128, 64)" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",  # attention_bias is false in config.json
        "model.layers.2.mlp.up_proj.weight",  # config.json has a layer less
        "model.norm.bias",
        "lm_head.bias",
        "model.layers.1.self_attn.q_norm.weight",
    ],
)
def test_a_tensor_without_a_place_in_the_model_is_named(name: str, tmp_path: Path) -> None:
    folder = edit(llama(tmp_path / "student"), add(name, 64))
    with pytest.raises(SoftshardsError, match=f"no place for weights: {name}"):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["v_head.weight", "vision_tower.layer.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"],
)
def test_what_stands_beside_the_language_model_may_be_there(name: str, tmp_path: Path) -> None:
    load_model(edit(llama(tmp_path / "student"), add(name, 16)))


@pytest.mark.parametrize("tied", [True, False])
def test_whole_checkpoints_load_with_the_saved_values(tied: bool, tmp_path: Path) -> None:
    folder = llama(tmp_path / "student", tie_word_embeddings=tied)
    saved, model = load_file(folder / "model.safetensors"), load_model(folder)
    assert ("lm_head.weight" in saved) != tied
    for name, value in saved.items():
        assert torch.equal(model.state_dict()[name], value.float())


def test_masks_that_older_checkpoints_store_are_no_weights(tmp_path: Path) -> None:
    settings = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model: PreTrainedModel = GPT2LMHeadModel(settings)
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda w: w.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}))
    load_model(tmp_path)


@pytest.fixture
def broken(world: World, tmp_path: Path) -> Path:
    """The world's student without the last norm."""
    folder = tmp_path / "broken"
    shutil.copytree(world.student, folder)
    return edit(folder, drop("model.norm.weight"))


def test_no_command_trains_or_measures_random_weights(
    world: World, broken: Path, tmp_path: Path
) -> None:
    lacks = r"lacks weights: model\.norm\.weight"
    with pytest.raises(SoftshardsError, match=lacks):
        train(config(world, tmp_path / "run", student=broken))
    with pytest.raises(SoftshardsError, match=lacks):
        measure_models(
            EvaluateConfig(labels=world.labels, model=(broken,), out=tmp_path / "eval.json")
        )
    with pytest.raises(SoftshardsError, match=lacks):
        slice_teacher(
            SliceConfig(teacher=broken, labels=world.labels, out=tmp_path / "sliced", keep=1)
        )
    settings = config(world, tmp_path / "new", student=broken, from_config=True, max_steps=1)
    assert train(settings) == 0  # it asks for no weights
