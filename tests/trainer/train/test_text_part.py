"""The text part of a vision-language checkpoint is trained, and the rest is saved as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conftest import World
from tests.trainer.running import command, config, log, run_ranks
from tests.trainer.student.families import save_family
from trainer.train.loop import train


@pytest.fixture(scope="module")
def vision(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "student"
    save_family("gemma3_vision", world.student, folder, vocab_size=world.vocab_size + 20)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("more", [{}, {"lora_r": 2}, {"gradient_checkpointing": True}])
def test_the_rest_stays_as_it_was(
    world: World, vision: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    train(config(world, tmp_path, student=vision, max_steps=3, **more))
    before = load_file(vision / "model.safetensors")
    after = load_file(tmp_path / "final" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        is_text = name.startswith("language_model.")
        if not is_text:
            assert torch.equal(after[name], value), name
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert any("self_attn.q_proj" in name for name in changed)
    assert (tmp_path / "final" / "preprocessor_config.json").is_file()
    lines = log(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks(world: World, vision: Path, sharded: bool, tmp_path: Path) -> None:
    arguments = command(world, tmp_path / "two", *(["--shard"] if sharded else []))
    changed = {"--packs-per-step": 4, "--epochs": 1, "--student": vision}
    for name, value in changed.items():
        arguments[arguments.index(name) + 1] = str(value)
    code, errors = run_ranks(arguments)
    assert code == 0, errors
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "student": vision}
    train(config(world, tmp_path / "one", gradient_checkpointing=True, **settings))
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
