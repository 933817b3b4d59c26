"""Losses over all ids, from stored hidden states: against online distillation by the teacher."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import SoftshardsError, open_label_set
from schemas.hidden_reader import HiddenReader
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.losses.dense import ALPHA, BETA, DENSE
from tests.trainer.losses.state_labels import (
    CPU,
    StateWorld,
    first_batch,
    make_state_world,
    run_teacher,
)
from tests.trainer.ops.test_devices import relative
from tests.trainer.running import config, log
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.data.mixture import open_mixture
from trainer.data.teacher_states import open_head, open_states
from trainer.evaluate.exact_kl import open_exact_kl
from trainer.evaluate.measure import measure
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.losses.objective import LossTerm, Objective, TokenWeighting
from trainer.student.exact_target import ExactTarget
from trainer.student.lora import LoraSettings
from trainer.student.student import Student, load_student
from trainer.train.loop import train

NAMES = {f"exact_{name.removeprefix('forward_')}": name for name in DENSE}


@pytest.fixture(scope="module")
def states(world: World, tmp_path_factory: pytest.TempPathFactory) -> StateWorld:
    return make_state_world(world, tmp_path_factory.mktemp("states"))


@dataclass(frozen=True)
class Case:
    """A student, in float32 and in float64, a batch, and the teacher's logits at its labels."""

    student: Student
    exact: Student
    batch: Batch
    logits: torch.Tensor


@pytest.fixture(scope="module")
def case(world: World, states: StateWorld) -> Case:
    student = load_student(world.student, open_label_set(states.half))
    batch = first_batch(student, states.half)
    return Case(student, deepcopy(student).double(), batch, run_teacher(world.teacher, batch)[0])


def gradients(
    student: Student, batch: Batch, labels: Path, objective: Objective
) -> list[torch.Tensor]:
    """Return the gradients of the trained parameters, as the trainer computes them."""
    target = ExactTarget(
        head=open_head(open_label_set(labels), CPU), layer=0, losses=objective.exact_losses
    )
    output = student(batch, exact=target)
    weights = token_weights(TokenWeighting(), batch)
    loss, _ = batch_loss(objective, output, batch, weights, [1.0] * len(objective.terms))
    trained = [p for p in student.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_online_distillation(
    world: World, states: StateWorld, case: Case, name: str, temperature: float
) -> None:
    """The teacher runs in float64 on the same tokens; the student's vocabulary is padded.

    The gradient of tvd has the sign of q - p: it changes by jumps where the two are almost equal.
    """
    objective = Objective(
        terms=(LossTerm(name=name, start=1, stop=1),),
        temperature=temperature, jsd_beta=BETA, skew_alpha=ALPHA,
    )  # fmt: skip
    ours = gradients(case.student, case.batch, states.half, objective)
    head: Any = case.exact.model.get_output_embeddings()
    z = (case.exact.hidden(case.batch) @ head.weight.T)[:, : world.vocab_size]
    q, p = ((x / temperature).softmax(1) for x in (case.logits, z))
    loss = temperature**2 * DENSE[NAMES[name]](q, p).sum()
    theirs = torch.autograd.grad(loss, list(case.exact.parameters()))
    bound = 2e-2 if name == "exact_tvd" else 1e-3
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < bound


def test_codes_come_near_the_teacher(world: World, states: StateWorld) -> None:
    student = load_student(world.student, open_label_set(states.codes))
    batch = first_batch(student, states.codes)
    assert batch.states is not None
    head = open_head(open_label_set(states.codes), CPU)
    q = run_teacher(world.teacher, batch)[0].log_softmax(1)
    p = (batch.states[:, 0] @ head.weight.T).double().log_softmax(1)
    kl = (q.exp() * (q - p)).sum(1)
    assert 1e-7 < kl.mean() < 1e-2


def test_an_adapter_on_the_head_learns_the_same(
    world: World, states: StateWorld, tmp_path: Path
) -> None:
    """LoRA, beside a loss over top-k and tail, against dense losses."""
    lora = LoraSettings(rank=4, alpha=8, targets=("lm_head", "q_proj"), seed=0)
    root = tmp_path / "untied"
    make_tokenizer(root)
    make_model(root, vocab_size=world.vocab_size, layers=1, seed=5, tie_word_embeddings=False)
    student = load_student(root, open_label_set(states.half), lora=lora)
    with torch.no_grad():  # B is 0 at first, and A has no gradient then
        for key, parameter in student.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    batch = first_batch(student, states.half)
    terms = tuple(LossTerm(name=n, start=1, stop=1) for n in ("exact_kl", "ce"))
    ours = gradients(student, batch, states.half, Objective(terms=terms))
    logits = student.model.get_output_embeddings()(student.hidden(batch))
    dense = logits[:, : world.vocab_size].double().log_softmax(1)
    q = run_teacher(world.teacher, batch)[0].log_softmax(1)
    loss = (q.exp() * (q - dense)).sum() - dense.gather(1, batch.targets[:, None]).sum()
    trained = [p for p in student.parameters() if p.requires_grad]
    for a, b in zip(ours, torch.autograd.grad(loss, trained), strict=True):
        assert relative(a, b) < 1e-3


@pytest.mark.parametrize("first", ["codes", "half"])
def test_a_mixture_decodes_each_set_by_its_own_basis(
    world: World, states: StateWorld, first: str
) -> None:
    """Two bases, or codes beside float16."""
    parts = open_mixture(open_label_set(getattr(states, first)), (str(states.other),))
    student = load_student(world.student, parts[0].labels)
    made = open_states(tuple(part.labels for part in parts), ("final",), CPU)
    seen = set()
    for pack in LabelDataset(parts, pack_tokens=256, window=9, states=("final",)):
        batch = made.decoded(collate(pack, attention=student.attention))
        exact = run_teacher(world.teacher, batch)[1][-1]
        assert batch.states is not None
        assert batch.sets is not None
        error = (batch.states[:, 0] - exact).square().mean()
        assert error < 0.03 * exact.square().mean()
        seen |= set(batch.sets.tolist())
    assert seen == {0, 1}


def test_a_run_reports_and_resumes(world: World, states: StateWorld, tmp_path: Path) -> None:
    """Any temperature, schedules, beside other losses; the KL over all ids of held-out labels."""
    settings: dict[str, Any] = {
        "labels": states.codes, "loss": ("exact_kl=1", "exact_tvd=linear:0:1", "ce=0.1"),
        "temperature": 2.0, "eval_labels": states.half, "save_every": 3,
        "epochs": 4, "keep_checkpoints": 9,
    }  # fmt: skip
    whole = config(world, tmp_path / "whole", **settings)
    assert train(whole) == 0
    lines = log(whole.out)
    assert lines[-1]["loss/exact_kl"] < lines[0]["loss/exact_kl"]
    evals = [json.loads(line) for line in (whole.out / "eval.jsonl").read_text().splitlines()]
    assert evals[-1]["exact_kl"] < evals[0]["exact_kl"]
    assert all(line["kl"] < line["exact_kl"] for line in evals)  # a lower bound
    saved = whole.out / "checkpoints" / "step-00000003"
    rest = config(world, tmp_path / "rest", **settings, resume=saved)
    assert train(rest) == 0
    assert log(rest.out) == lines[3:]


def test_the_measured_kl_is_the_dense_one(world: World, states: StateWorld) -> None:
    labels = open_label_set(states.half)
    student = load_student(world.student, labels).eval()
    exact = open_exact_kl(labels, student, CPU)
    found = measure(student, labels, device=CPU, exact=exact).whole.metrics
    total, count = 0.0, 0
    head: Any = student.model.get_output_embeddings()
    with torch.no_grad():
        for pack in LabelDataset(labels, pack_tokens=2048):
            batch = collate(pack, attention=student.attention)
            z = (student.hidden(batch) @ head.weight.T)[:, : world.vocab_size]
            q, p = run_teacher(world.teacher, batch)[0].log_softmax(1), z.double().log_softmax(1)
            total += float((q.exp() * (q - p)).sum())
            count += len(q)
    assert found.exact_kl == pytest.approx(total / count, rel=1e-4)
    assert found.kl < found.exact_kl


def test_a_set_without_top_k_trains_on_states_alone(world: World, tmp_path: Path) -> None:
    labels = build_label_set(
        tmp_path / "labels", world.teacher, random_rows(8, world.vocab_size),
        vocab_size=world.vocab_size, k=0, layers=("final",),
    )  # fmt: skip
    run = config(world, tmp_path / "run", labels=labels, loss=("exact_reverse_kl=1",), epochs=4)
    assert train(run) == 0
    assert log(run.out)[-1]["loss"] < log(run.out)[0]["loss"]
    with pytest.raises(SoftshardsError, match="hold no top-k, and --loss forward_kl compares it"):
        train(config(world, tmp_path / "other", labels=labels))


def test_what_cannot_be_trained_is_refused_before_the_student_loads(
    world: World, states: StateWorld, tmp_path: Path
) -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(SoftshardsError) as caught:
            train(config(world, tmp_path, **settings))
        return str(caught.value)

    found = message(loss=("exact_kl=1",))
    assert str(world.labels) in found
    assert "hold no hidden states" in found
    assert "labeler label --states final" in found
    mixed = {"labels": states.half, "mix": (str(world.labels),), "loss": ("exact_kl=1",)}
    assert f"{world.labels}: the labels hold no hidden states" in message(**mixed)
    assert "has no probability for ids" in message(vocab_map=True, loss=("exact_kl=1",))
    bucketed = {"labels": states.half, "loss": ("exact_kl=1", "jsd=1"), "temperature": 2.0}
    assert "outside the top k at T = 1, and --temperature is 2" in message(**bucketed)


def test_columns_of_states_are_read_only_where_a_loss_needs_them(
    states: StateWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HiddenReader, "read_beside", lambda *_: pytest.fail("states were read"))
    assert next(iter(LabelDataset(states.half, pack_tokens=256))).window.labels.states is None
    with pytest.raises(pytest.fail.Exception):
        next(iter(LabelDataset(states.half, pack_tokens=256, states=("final",))))
