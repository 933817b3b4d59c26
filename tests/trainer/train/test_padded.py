"""Students that cannot be packed are trained on padded batches, one document per row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import command, config, log, run_ranks
from tests.trainer.student.families import family_config
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.train.loop import train

STATEFUL = ("lfm2", "mamba", "qwen3_next", "jamba", "nemotron_h")


def make_student(world: World, family: str, folder: Path) -> Path:
    """Save a tiny model of a family, with the world's tokenizer."""
    shutil.copytree(world.student, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.manual_seed(2)
    settings = family_config(family, vocab_size=world.vocab_size + 20)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def students(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {family: make_student(world, family, root / family) for family in STATEFUL}


def plain_cross_entropy(world: World, model: Path) -> tuple[float, int]:
    """Return the mean over all labels by transformers alone, a row at a time, and their number."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    losses = []
    for row in world.rows:
        ids = torch.tensor(row.input_ids)
        with torch.no_grad():
            logits = plain(input_ids=ids[None], use_cache=False).logits[0, :, : world.vocab_size]
        at = torch.tensor([t for start, stop, _ in row.spans for t in range(start, stop)])
        losses.append(-logits.log_softmax(-1)[at - 1].gather(1, ids[at, None])[:, 0])
    return float(torch.cat(losses).mean()), len(torch.cat(losses))


def test_a_padded_step_is_a_packed_step(world: World, tmp_path: Path) -> None:
    """All rows in one step: the same labels, losses and gradient."""
    settings: dict[str, Any] = {"packs_per_step": 1000, "epochs": 1}
    for packing in ("on", "off"):
        train(config(world, tmp_path / packing, packing=packing, **settings))
    (packed,), (padded,) = log(tmp_path / "on"), log(tmp_path / "off")
    assert padded["tokens"] == packed["tokens"] == sum(len(row.input_ids) for row in world.rows)
    assert padded["labels"] == packed["labels"] == sum(row.n_labels for row in world.rows)
    for name in ("loss", "kl", "ce", "grad_norm", "teacher_tail", "student_rest"):
        assert padded[name] == pytest.approx(packed[name], rel=1e-5)


def test_a_padded_step_weighs_labels_as_a_packed_one(world: World, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"packs_per_step": 1000, "epochs": 1, "position_weight": "0.1:32"}
    for packing in ("on", "off"):
        train(config(world, tmp_path / packing, packing=packing, **settings))
    (packed,), (padded,) = log(tmp_path / "on"), log(tmp_path / "off")
    assert padded["loss"] == pytest.approx(packed["loss"], rel=1e-5)
    assert padded["grad_norm"] == pytest.approx(packed["grad_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["lfm2", *(pytest.param(name, marks=pytest.mark.slow) for name in STATEFUL[1:])]
)
def test_first_step_resume_and_evaluation(
    world: World,
    students: dict[str, Path],
    family: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {
        "student": students[family],
        "pack_tokens": 4096,  # one pack, one step an epoch
        "packs_per_step": 1,
        "window": 1000,
        "epochs": 3,
        "save_every": 1,
        "keep_checkpoints": 9,
        "eval_labels": world.labels,
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config(world, whole, **settings))
    expected, count = plain_cross_entropy(world, students[family])
    lines = log(whole)
    assert len(lines) == 3
    assert lines[0]["ce"] == pytest.approx(expected, rel=1e-5)
    assert [line["labels"] for line in lines] == [count] * 3
    assert lines[-1]["tokens"] == 3 * sum(len(row.input_ids) for row in world.rows)
    assert "student: documents are padded, not packed: its " in capsys.readouterr().err
    assert json.loads((whole / "result.json").read_text())["packed"] is False

    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "final")
    (resumed / "result.json").unlink()
    first = resumed / "checkpoints" / "step-00000001"
    assert json.loads((first / "meta.json").read_text())["packed"] is False
    train(config(world, resumed, resume=first, **settings))
    assert "resuming after step 1 of 3" in capsys.readouterr().err
    for name in ("log.jsonl", "eval.jsonl", "final/model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name

    _, ((_, entry),) = measure_models(
        EvaluateConfig(labels=world.labels, model=(whole / "final",), out=tmp_path / "results.json")
    )
    after, _ = plain_cross_entropy(world, whole / "final")
    assert entry.all.ce == pytest.approx(after, rel=1e-5)
    held_out = json.loads((whole / "eval.jsonl").read_text().splitlines()[-1])
    assert held_out["ce"] == pytest.approx(after, rel=1e-5)
    assert after < expected


@pytest.mark.slow
def test_small_batches_resume_within_an_epoch(
    world: World, students: dict[str, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"student": students["lfm2"], "save_every": 2, "epochs": 2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config(world, whole, keep_checkpoints=9, mix=(f"{world.labels}=0.5",), **settings))
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "final")
    (resumed / "result.json").unlink()
    train(
        config(
            world,
            resumed,
            resume=resumed / "checkpoints" / "step-00000002",
            mix=(f"{world.labels}=0.5",),
            **settings,
        )
    )
    for name in ("log.jsonl", "final/model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    tokens = 2 * sum(len(row.input_ids) for row in world.rows)
    assert tokens < log(whole)[-1]["tokens"] < 2 * tokens


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"lora_r": 2}, {"gradient_checkpointing": True}])
def test_other_settings_with_padding(
    world: World, students: dict[str, Path], more: dict[str, Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"student": students["lfm2"], "packs_per_step": 1000}
    for name, extra in (("usual", {}), ("other", more)):
        train(config(world, tmp_path / name, epochs=2, **settings, **extra))
    usual, other = log(tmp_path / "usual"), log(tmp_path / "other")
    assert other[0]["loss"] == pytest.approx(usual[0]["loss"], rel=1e-6)
    assert (tmp_path / "other" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("family", STATEFUL)
def test_packing_on_is_refused(
    world: World, students: dict[str, Path], family: str, tmp_path: Path
) -> None:
    kinds = "(linear_attention|conv|hybrid|mamba|recurrent)"
    with pytest.raises(
        SoftshardsError, match=f"cannot be packed: its .*{kinds}.* layers would leak"
    ):
        train(config(world, tmp_path, student=students[family], packing="on"))


def test_compile_is_refused(world: World, students: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="--compile needs packed documents"):
        train(config(world, tmp_path, student=students["mamba"], compile=True))
    with pytest.raises(SoftshardsError, match="--compile needs packed documents"):
        config(world, tmp_path, compile=True, packing="off")


def test_packing_is_part_of_the_run(world: World, tmp_path: Path) -> None:
    train(config(world, tmp_path, packing="off", save_every=2))
    (tmp_path / "result.json").unlink()
    with pytest.raises(SoftshardsError, match=r"config\.packing: then 'off', now 'auto'"):
        train(config(world, tmp_path, save_every=2))


def test_a_run_whose_documents_were_packed_elsewhere(world: World, tmp_path: Path) -> None:
    """--packing auto may choose otherwise where the machine has other attention."""
    train(config(world, tmp_path, save_every=2))
    (tmp_path / "result.json").unlink()
    for meta in tmp_path.glob("checkpoints/*/meta.json"):
        content = json.loads(meta.read_text())
        assert content["packed"] is True
        meta.write_text(json.dumps(content | {"packed": False}))
        (meta.parent / "digests.json").unlink()
    with pytest.raises(SoftshardsError, match=r"began with padded documents, and .* are packed"):
        train(config(world, tmp_path, save_every=2))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks(world: World, students: dict[str, Path], sharded: bool, tmp_path: Path) -> None:
    """Two processes take the steps of one."""
    arguments = command(world, tmp_path / "two", *(["--shard"] if sharded else []))
    changed = {"--packs-per-step": 4, "--epochs": 1, "--save-every": 2}
    changed |= {"--student": students["lfm2"]}
    for name, value in changed.items():
        arguments[arguments.index(name) + 1] = str(value)
    code, errors = run_ranks(arguments)
    assert code == 0, errors
    assert errors.count("documents are padded, not packed") == 1
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "student": students["lfm2"]}
    train(config(world, tmp_path / "one", gradient_checkpointing=True, **settings))
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    for name in ("loss", "kl", "ce"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5)
    models = [load_file(tmp_path / n / "final" / "model.safetensors") for n in ("one", "two")]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=0, atol=1e-3)
