"""`--loss states`: hidden states of the student against the teacher's, by plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError, open_label_set
from tests.trainer.conftest import World
from tests.trainer.losses.state_labels import (
    LAYERS,
    StateWorld,
    first_batch,
    make_state_world,
    run_teacher,
)
from tests.trainer.running import command, config, log, run_ranks
from trainer.data.collate import Batch
from trainer.data.mixture import Part
from trainer.losses import state_distance
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.losses.loss_table import StateLoss
from trainer.losses.objective import TokenWeighting
from trainer.losses.state_map import StatePair, choose_pairs, parse_pairs
from trainer.student.student import Student
from trainer.train import loop
from trainer.train.loop import train
from trainer.train.train_config import TrainConfig


@pytest.fixture(scope="module")
def states(world: World, tmp_path_factory: pytest.TempPathFactory) -> StateWorld:
    return make_state_world(world, tmp_path_factory.mktemp("states"))


def student_of(run: TrainConfig) -> Student:
    """Return the student as a run sets it up."""
    return loop._load(run, (Part(labels=open_label_set(run.labels)),))


def loss_of(run: TrainConfig, student: Student, batch: Batch) -> torch.Tensor:
    weights = token_weights(TokenWeighting(), batch)
    factors = [term.weight(0, 1) for term in run.objective.terms]
    loss, _ = batch_loss(run.objective, student(batch), batch, weights, factors)
    return loss


def plain_distance(kind: str, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if kind == "mse":
        return functional.mse_loss(s, t, reduction="none").mean(1)
    if kind == "cosine":
        return 1 - (functional.normalize(s, dim=1) * functional.normalize(t, dim=1)).sum(1)
    return (s - t).norm(dim=1) ** 2 / t.norm(dim=1) ** 2


@pytest.mark.parametrize("kind", ["mse", "cosine", "normalized_mse"])
def test_gradients_equal_plain_pytorch(
    world: World, states: StateWorld, tmp_path: Path, kind: StateLoss
) -> None:
    """A student half as wide, by the states that transformers itself returns for both sides."""
    run = config(
        world, tmp_path, labels=states.half, student=states.narrow, loss=("states=1", "ce=0"),
        state_layers="0:0,0:1,final", state_loss=kind, save_dtype="fp32",
    )  # fmt: skip
    student = student_of(run)
    assert student.teacher_layers == ("layer_0", "layer_1", "final")
    assert student.matching is not None
    batch = first_batch(student, states.half, student.teacher_layers)
    trained = list(student.parameters())
    ours = torch.autograd.grad(loss_of(run, student, batch), trained, allow_unused=True)
    found = student.model.model(**batch.model_inputs, output_hidden_states=True)
    own = [found.hidden_states[1], found.hidden_states[1], found.last_hidden_state]
    of_teacher = run_teacher(world.teacher, batch)[1]
    # layer_1 is the teacher's last, before the norm, which transformers does not return.
    exact = [of_teacher[1].float(), batch.states[:, 1], of_teacher[2].float()]  # type: ignore[index]
    total = torch.zeros(())
    for project, s, t in zip(student.matching.projections, own, exact, strict=True):
        total = total + plain_distance(kind, project(s[0, batch.rows]), t).sum() / 3
    theirs = torch.autograd.grad(total, trained, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            torch.zeros(1) if a is None else a, torch.zeros_like(a) if b is None else b,
            rtol=2e-3, atol=2e-3 * float(0 if b is None else b.abs().max()),
        )  # fmt: skip


def test_distances_at_their_limits() -> None:
    t = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    s = torch.tensor([[4.0, -3.0], [1.0, 1.0]], requires_grad=True)
    assert state_distance(t, s, kind="mse").tolist() == [25.0, 1.0]
    assert state_distance(t, s, kind="cosine").tolist() == [1.0, 0.0]
    assert state_distance(t, s, kind="normalized_mse").tolist() == [2.0, 0.0]
    assert state_distance(t, 0 * s, kind="normalized_mse")[0] == 1
    state_distance(t, s, kind="cosine").sum().backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()
    with pytest.raises(ValueError, match="must both be"):
        state_distance(t, s[:, :1], kind="mse")


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"lora_r": 4}, {}])
def test_wrapped_layers_return_the_same_states(
    world: World, states: StateWorld, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Equal widths have no projection: the state itself is compared. B of LoRA is 0 at first."""
    common: dict[str, Any] = {"labels": states.half, "student": world.teacher}
    run = config(world, tmp_path, **common, loss=("states=1",), **settings)
    student = student_of(run)
    assert student.matching is not None
    assert not student.matching.projections
    batch = first_batch(student, states.half, student.teacher_layers)
    output = student(batch)
    for name, (teacher, own) in zip(student.teacher_layers, output.states, strict=True):
        gap = (own - teacher).square().mean() / teacher.square().mean()
        assert gap < 1e-6, name  # the teacher as its own student: all but the codec's error
    loss_of(run, student, batch).backward()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    assert student.matching._seen is None


def test_a_run_saves_projections_apart_and_resumes(
    world: World, states: StateWorld, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "labels": states.codes, "student": states.narrow, "epochs": 4, "save_every": 3,
        "loss": ("states=linear:0:1", "exact_kl=1"), "state_layers": "uniform",
        "keep_checkpoints": 9,
    }  # fmt: skip
    whole = config(world, tmp_path / "whole", **settings)
    assert train(whole) == 0
    lines = log(whole.out)
    assert lines[-1]["loss/states"] < lines[0]["loss/states"]
    saved = whole.out / "checkpoints" / "step-00000003"
    names = [f"matching.projections.{i}.weight" for i in range(3)]
    assert list(torch.load(saved / "projections.pt")) == names
    assert all(name.startswith("model.") for name in torch.load(saved / "model.pt"))
    found = load_file(whole.out / "projections.safetensors")
    assert {pair: tuple(weight.shape) for pair, weight in found.items()} == dict.fromkeys(
        ["0:0", "1:1", "final:final"], (64, 32)
    )
    final = load_file(whole.out / "final" / "model.safetensors")
    assert final.keys() == load_file(states.narrow / "model.safetensors").keys()
    AutoModelForCausalLM.from_pretrained(whole.out / "final")
    rest = config(world, tmp_path / "rest", **settings, resume=saved)
    assert train(rest) == 0
    assert log(rest.out) == lines[3:]
    for name in ("projections.safetensors", "final/model.safetensors"):
        assert (rest.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--shard"]], ids=["DDP", "FSDP2"])
def test_two_ranks_learn_the_same_as_one(
    world: World, states: StateWorld, tmp_path: Path, how: list[str]
) -> None:
    """Losses over all ids, projections that count from the second step on, one pack in the last."""
    settings: dict[str, Any] = {
        "labels": states.codes, "student": states.narrow, "epochs": 1, "temperature": 2.0,
        "loss": ("exact_kl=1", "states=linear:0:1"), "eval_labels": states.half,
    }  # fmt: skip
    one = config(world, tmp_path / "one", **settings)
    assert train(one) == 0
    arguments = command(world, tmp_path / "two", "--loss", "exact_kl=1", *how)
    arguments += ["--loss", "states=linear:0:1", "--temperature", "2"]
    arguments += ["--eval-labels", str(states.half)]
    changed = {"--labels": states.codes, "--student": states.narrow, "--epochs": 1}
    for flag, value in (changed | {"--packs-per-step": 4}).items():
        arguments[arguments.index(flag) + 1] = str(value)
    code, errors = run_ranks(arguments)
    assert code == 0, errors
    two = tmp_path / "two"
    assert len(log(two)) == len(log(one.out)) > 1
    for ours, theirs in zip(log(two), log(one.out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name in ("projections.safetensors", "final/model.safetensors"):
        weights = [load_file(out / name) for out in (two, one.out)]
        for key, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][key], rtol=0, atol=2e-5)
    evals = [(out / "eval.jsonl").read_text().splitlines() for out in (two, one.out)]
    for ours, theirs in zip(*(map(json.loads, lines) for lines in evals), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours["exact_kl"] > ours["kl"]


@pytest.mark.slow
def test_compiled_layers_return_the_same_states(
    world: World, states: StateWorld, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"labels": states.half, "loss": ("states=1",), "max_steps": 2}
    settings |= {"state_layers": "0:0,0:1,final", "gradient_checkpointing": True}
    logs = []
    for compiled in (False, True):
        run = config(world, tmp_path / str(compiled), **settings, compile=compiled)
        assert train(run) == 0
        logs.append(log(run.out))
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_pairs_of_layers() -> None:
    stored = ("final", "layer_0", "layer_1", "layer_2", "layer_3")
    found = {
        text: ",".join(map(str, choose_pairs(text, stored, 2)))
        for text in ("uniform", "1:3,final", "0:final")
    }
    assert found == {
        "uniform": "0:0,0:1,1:2,1:3,final:final",
        "1:3,final": "1:3,final:final",
        "0:final": "0:final",
    }
    assert choose_pairs("all", ("layer_1",), 2) == (StatePair(1, "layer_1"),)
    assert choose_pairs("all", ("final",), 2) == (StatePair(None, "final"),)
    with pytest.raises(SoftshardsError, match="states of layer 3, and the student has 2 layers"):
        choose_pairs("all", stored, 2)
    with pytest.raises(SoftshardsError, match="holds no states of layer_9"):
        choose_pairs("0:9", stored, 2)
    for text in ("", "0:", "a:1", "-1:2", "0;1", "layer_1"):
        with pytest.raises(SoftshardsError, match="it must be all, uniform, or STUDENT:TEACHER"):
            parse_pairs(text)
    with pytest.raises(SoftshardsError, match="names a pair twice"):
        parse_pairs("0:0,00:0")


def test_what_cannot_be_compared_is_refused(
    world: World, states: StateWorld, tmp_path: Path
) -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(SoftshardsError) as caught:
            train(config(world, tmp_path, **settings))
        return str(caught.value)

    assert "--states 0,final" in message(loss=("states=1",), state_layers="0:0,final")
    assert "changes nothing without --loss states" in message(state_layers="0:0")
    assert "not of layer_7" in message(
        labels=states.half, loss=("states=1",), state_layers="0:7,final"
    )
    assert "the student has no layer 1: it has 1" in message(
        labels=states.half, loss=("states=1",), state_layers="1:1"
    )
    assert "the student has 1 layers" in message(labels=states.half, loss=("states=1",))
    assert LAYERS == ("final", "layer_0", "layer_1")
