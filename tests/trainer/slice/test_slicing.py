"""Students cut out of a teacher: fewer layers, narrower feed-forward blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from schemas import SoftshardsError, open_label_set
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from tests.trainer.running import config as train_config
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_teacher import slice_teacher
from trainer.student.student import load_student
from trainer.train.loop import train


@pytest.fixture(scope="module")
def deep(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with two layers that do nothing between its own two."""
    path = tmp_path_factory.mktemp("deep") / "teacher"
    shutil.copytree(world.teacher, path)
    make_model(path, vocab_size=world.vocab_size, layers=4, seed=9)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.load_state_dict(
        AutoModelForCausalLM.from_pretrained(world.teacher).state_dict(), strict=False
    )
    layers = model.model.layers
    layers[3].load_state_dict(layers[1].state_dict())
    for idle in (1, 2):
        torch.nn.init.zeros_(layers[idle].self_attn.o_proj.weight)
        torch.nn.init.zeros_(layers[idle].mlp.down_proj.weight)
    model.save_pretrained(path)
    return path


def test_slice_removes_the_layers_that_do_nothing(
    world: World, deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SliceConfig(
        teacher=deep, labels=world.labels, out=tmp_path / "s", keep=2, sample_tokens=300
    )
    assert slice_teacher(config) == 0
    report = json.loads((tmp_path / "s" / "slice.json").read_text())
    assert report["layers"] == [0, 3]
    assert report["kl"] < 1e-5
    student = load_student(tmp_path / "s", open_label_set(world.labels))
    assert student.model.config.num_hidden_layers == 2
    stamp = (tmp_path / "s" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert slice_teacher(config) == 0
    assert "reused" in capsys.readouterr().err
    assert (tmp_path / "s" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(SoftshardsError, match="other layers or neurons"):
        slice_teacher(SliceConfig(teacher=deep, labels=world.labels, out=tmp_path / "s", keep=3))


def test_slice_of_named_layers(world: World, deep: Path, tmp_path: Path) -> None:
    config = SliceConfig(teacher=deep, labels=world.labels, out=tmp_path / "s", layers="0,2")
    assert slice_teacher(config) == 0
    assert json.loads((tmp_path / "s" / "slice.json").read_text())["layers"] == [0, 2]
    with pytest.raises(SoftshardsError, match="only 4 layers"):
        slice_teacher(
            SliceConfig(teacher=deep, labels=world.labels, out=tmp_path / "x", layers="0,7")
        )
    with pytest.raises(SoftshardsError, match="one of --keep, --layers and --stride"):
        SliceConfig(teacher=deep, labels=world.labels, out=tmp_path / "x")


def test_slice_by_stride(world: World, deep: Path, tmp_path: Path) -> None:
    config = SliceConfig(teacher=deep, labels=world.labels, out=tmp_path / "s", stride=3)
    assert slice_teacher(config) == 0
    report = json.loads((tmp_path / "s" / "slice.json").read_text())
    assert report["layers"] == [0, 3]
    assert report["kl"] < 1e-5  # the two between do nothing


@pytest.fixture(scope="module")
def wide(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher plus 50 % dead neurons: half of them never fire, half have no output weights."""
    path = tmp_path_factory.mktemp("wide") / "teacher"
    shutil.copytree(world.teacher, path)
    make_model(path, vocab_size=world.vocab_size, intermediate_size=192, seed=9)
    model = AutoModelForCausalLM.from_pretrained(path)
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher)
    model.load_state_dict(
        {n: w for n, w in teacher.state_dict().items() if "mlp" not in n}, strict=False
    )
    alive = torch.arange(192) % 3 != 2
    for layer, theirs in zip(model.model.layers, teacher.model.layers):
        for name in ("gate_proj", "up_proj"):
            weight = getattr(layer.mlp, name).weight.data
            weight[alive] = getattr(theirs.mlp, name).weight.data
            weight[~alive] = 3.0  # large: activation or weight alone would keep them
        layer.mlp.up_proj.weight.data[5::6] = 0
        layer.mlp.down_proj.weight.data[:, alive] = theirs.mlp.down_proj.weight.data
        layer.mlp.down_proj.weight.data[:, 2::6] = 0
        layer.mlp.down_proj.weight.data[:, 5::6] = 3.0
    model.save_pretrained(path)
    return path


def test_dead_neurons_are_removed(world: World, wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    asked = SliceConfig(teacher=wide, labels=world.labels, out=out, ffn_keep=0.67)
    assert slice_teacher(asked) == 0
    report = json.loads((out / "slice.json").read_text())
    assert (report["ffn"]["before"], report["ffn"]["after"]) == (192, 128)
    assert report["ffn"]["kept_scores"] == pytest.approx([1.0, 1.0])
    assert report["kl"] < 1e-5
    # A plain checkpoint, equal to the label set's teacher again.
    student = AutoModelForCausalLM.from_pretrained(out)
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher)
    assert student.config.intermediate_size == 128
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=0, atol=1e-4)
    assert train(train_config(world, tmp_path / "run", student=out, max_steps=1)) == 0


def test_layers_and_neurons_together(world: World, wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    settings = {"teacher": wide, "labels": world.labels, "out": out}
    assert slice_teacher(SliceConfig(**settings, keep=1, ffn_keep=0.5)) == 0
    student = AutoModelForCausalLM.from_pretrained(out)
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (1, 96)
    with pytest.raises(SoftshardsError, match="other layers or neurons"):
        slice_teacher(SliceConfig(**settings, keep=1, ffn_keep=0.75))


def test_other_kinds_of_blocks_are_refused(world: World, tmp_path: Path) -> None:
    teacher = tmp_path / "gpt2"
    make_tokenizer(teacher)
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(vocab_size=world.vocab_size, **shape)).save_pretrained(teacher)
    settings = {"teacher": teacher, "labels": world.labels, "out": tmp_path / "s"}
    with pytest.raises(SoftshardsError, match="layer 0 has a GPT2MLP") as caught:
        slice_teacher(SliceConfig(**settings, ffn_keep=0.5))
    assert "hint:" in str(caught.value)
    with pytest.raises(SoftshardsError, match="--ffn-keep is 0"):
        SliceConfig(**settings, ffn_keep=0.0)
