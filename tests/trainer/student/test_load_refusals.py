"""Folders and architectures that cannot be trained are refused in one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPTJConfig, GPTJForCausalLM

from schemas import SoftshardsError
from tests.trainer.conftest import World
from trainer.student.layers import enable_gradient_checkpointing
from trainer.student.load_model import load_model


@pytest.mark.parametrize("from_config", [False, True])
@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "mxfp4"])
def test_quantized(world: World, tmp_path: Path, method: str, from_config: bool) -> None:
    shutil.copytree(world.student, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(SoftshardsError, match=rf"quantized \({method}\) and cannot be trained"):
        load_model(tmp_path, from_config=from_config)


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -1])
def test_truncated_weights(world: World, tmp_path: Path, kept: int) -> None:
    shutil.copytree(world.student, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SoftshardsError, match="the model cannot be loaded"):
        load_model(tmp_path)


def test_gradient_checkpointing_where_it_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPTJForCausalLM(GPTJConfig(n_embd=16, n_layer=1, n_head=2, rotary_dim=4, vocab_size=20))
    enable_gradient_checkpointing(model)
    assert model.is_gradient_checkpointing
    monkeypatch.setattr(GPTJForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(SoftshardsError, match="GPTJForCausalLM does not support it"):
        enable_gradient_checkpointing(model)
