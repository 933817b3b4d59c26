"""Sums of losses and weights of labels, the same however a step is split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas import open_label_set
from schemas.arrow import SPAN_KINDS
from tests.trainer.conftest import World
from tests.trainer.running import command, config, log, run_ranks
from trainer import losses
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.losses.batch_loss import batch_loss, label_losses, token_weights
from trainer.losses.loss_flags import parse_losses
from trainer.losses.objective import LossTerm, Objective, TokenWeighting
from trainer.student.student import Student, load_student
from trainer.student.student_output import StudentOutput
from trainer.train.loop import train

KIND_FLAGS = ("answer=2", "thinking=0.2")


@pytest.fixture(scope="module")
def batches(world: World) -> list[Batch]:
    packs = list(LabelDataset(world.labels, pack_tokens=128, window=4))[:4]
    return [collate(pack) for pack in packs]


@pytest.fixture(scope="module")
def student(world: World) -> Student:
    return load_student(world.student, open_label_set(world.labels)).train()


def objective(*texts: str, **settings: Any) -> Objective:
    flags = {"temperature": settings.get("temperature", 1.0), "jsd_beta": 0.3, "skew_alpha": 0.2}
    return Objective(terms=parse_losses(texts, **flags), **flags)


def values(student: Student, batch: Batch) -> dict[str, Tensor]:
    """Return every loss of a batch, by name."""
    logp, rest, target, *_ = student(batch)
    four = (batch.topk_logprobs, batch.tail_logprob, logp, rest)
    return {
        "forward_kl": losses.forward_kl(*four),
        "reverse_kl": losses.reverse_kl(*four),
        "jsd": losses.jsd(*four, beta=0.3),
        "skew_kl": losses.skew_kl(*four, alpha=0.2),
        "skew_reverse_kl": losses.skew_reverse_kl(*four, alpha=0.2),
        "tvd": losses.tvd(*four),
        "ce": -target,
    }


def test_a_sum_of_all_losses(student: Student, batches: list[Batch]) -> None:
    known = values(student, batches[0])
    assert len({round(v.mean().item(), 4) for v in known.values()}) == len(known)
    factors = [1.0 + i for i in range(len(known))]
    weights = torch.rand(len(batches[0].targets))
    loss, sums = batch_loss(
        objective(*(f"{name}=1" for name in known)),
        student(batches[0]),
        batches[0],
        weights,
        factors,
    )
    want = torch.stack([(weights * v).sum() for v in known.values()])
    torch.testing.assert_close(loss, (torch.tensor(factors) * want).sum())
    torch.testing.assert_close(sums[2:], want.detach())
    torch.testing.assert_close(sums[0], known["forward_kl"].sum().detach())  # unweighted
    torch.testing.assert_close(sums[1], known["ce"].sum().detach())
    assert not sums.requires_grad


def test_renormalized_kl_at_two(student: Student, batches: list[Batch]) -> None:
    what = objective("renormalized_kl=1", temperature=2.0)
    assert "free outside the teacher's top k" in what.warnings[0]
    assert not objective("forward_kl=1").warnings
    batch = batches[0]
    output = student(batch)
    loss, _ = batch_loss(what, output, batch, torch.ones_like(output[1]), [1.0])
    want = losses.renormalized_kl(batch.topk_logprobs, output[0], temperature=2.0).sum()
    assert loss.item() == want.item()
    assert want.item() != losses.renormalized_kl(batch.topk_logprobs, output[0]).sum().item()


def test_a_term_of_weight_zero_has_no_part_in_the_gradient(batches: list[Batch]) -> None:
    batch = batches[0]
    n, k = batch.topk_ids.shape
    logp = torch.full((n, k), -3.0, requires_grad=True)
    rest = torch.full((n,), -math.inf, requires_grad=True)  # forward KL is infinite
    target = torch.full((n,), -1.0, requires_grad=True)
    what = objective("forward_kl=linear:0:1", "ce=1")
    output = StudentOutput(logp, rest, target)
    loss, sums = batch_loss(what, output, batch, torch.ones(n), [0.0, 1.0])
    assert loss.item() == n
    assert sums[2] == math.inf  # still reported
    grads = torch.autograd.grad(loss, [logp, rest, target], allow_unused=True)
    assert grads[0] is None
    assert grads[2].tolist() == [-1.0] * n
    loss, _ = batch_loss(what, output, batch, torch.ones(n), [0.0, 0.0])
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, target)[0].any()


def test_labels_of_weight_zero_have_no_part(batches: list[Batch]) -> None:
    """A fully masked batch, and infinities under the mask: no loss, no gradient, no NaN."""
    batch = batches[0]
    n, k = batch.topk_ids.shape
    logp = torch.full((n, k), -3.0, requires_grad=True)
    rest = torch.full((n,), -math.inf, requires_grad=True)
    target = torch.full((n,), -math.inf, requires_grad=True)
    what, output = objective("forward_kl=1", "ce=1"), StudentOutput(logp, rest, target)
    loss, _ = batch_loss(what, output, batch, torch.zeros(n), [1.0, 1.0])
    assert loss.item() == 0
    for grad in torch.autograd.grad(loss, [logp, rest, target]):
        assert (grad == 0).all()


def test_weights_by_kind(batches: list[Batch]) -> None:
    seen = set()
    for batch in batches:
        kinds = tuple(float(10 + i) for i in range(len(SPAN_KINDS)))
        weights = token_weights(TokenWeighting(kinds=kinds), batch)
        assert weights.tolist() == [10 + kind for kind in batch.kinds.tolist()]
        seen |= {SPAN_KINDS[kind] for kind in batch.kinds.tolist()}
    assert {"text", "thinking", "answer"} <= seen


def test_weights_by_position(batches: list[Batch]) -> None:
    """From 0.2 for a label with no context, in equal steps, to 1 with ten tokens of it."""
    batch = batches[0]
    weights = token_weights(TokenWeighting(position=(0.2, 10)), batch)
    for weight, row in zip(weights.tolist(), batch.rows.tolist()):
        context = batch.position_ids[0, row].item() + 1
        assert weight == pytest.approx(0.2 + 0.8 * min(1, context / 10))
    assert weights.min() == pytest.approx(0.28)
    assert weights.max() == 1


def test_weights_by_the_teachers_entropy(batches: list[Batch]) -> None:
    batch = batches[0]
    weights = token_weights(TokenWeighting(entropy=0.5), batch)
    q = np.concatenate([batch.topk_logprobs.exp(), batch.tail_logprob.exp()[:, None]], 1)
    entropy = -(q * np.log(q)).sum(1)
    np.testing.assert_allclose(weights, 1 + 0.5 * entropy / np.log(9), rtol=1e-5)
    assert (token_weights(TokenWeighting(entropy=-1.0), batch) >= 0).all()


def test_weights_by_source(batches: list[Batch]) -> None:
    """The first pattern that matches a row's input file applies to all labels of the row."""
    batch = batches[0]
    names = ["code/a.jsonl", "web/b.jsonl"]
    sources = [names[i % 2] for i in range(len(batch.sources))]
    batch = Batch(**(vars(batch) | {"sources": sources}))
    how = TokenWeighting(sources=(("code/*", 3.0), ("*", 0.5)))
    weights = token_weights(how, batch)
    ends = (batch.position_ids[0] == 0).cumsum(0) - 1
    documents = ends[batch.rows].tolist()
    assert weights.tolist() == [0.5 if d % 2 else 3.0 for d in documents]
    assert len(set(documents)) > 2
    both = token_weights(TokenWeighting(sources=how.sources, position=(0.2, 10)), batch)
    alone = token_weights(TokenWeighting(position=(0.2, 10)), batch)
    torch.testing.assert_close(both, weights * alone)


def test_a_weighted_step_is_the_gradient_of_the_weighted_mean(
    world: World, batches: list[Batch], tmp_path: Path
) -> None:
    """Accumulate 4 packs: divide by the sum of weights of all labels, not pack by pack."""
    student = load_student(world.student, open_label_set(world.labels)).train()
    settings: dict[str, Any] = {"kind_weight": KIND_FLAGS, "position_weight": "0.1:20"}
    how = config(world, tmp_path, **settings).objective.weighting
    parts = [(label_losses(student(b), b), token_weights(how, b)) for b in batches]
    kl, ce = (torch.cat([p[0][i] for p in parts]) for i in range(2))
    weights = torch.cat([p[1] for p in parts])
    assert len({p[1].mean().item() for p in parts}) == 4
    mean = (weights * (kl + ce)).sum() / weights.sum()
    mean.backward()
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in student.parameters() if p.grad is not None]
    )
    train(config(world, tmp_path, max_steps=1, clip=0.0, **settings))
    line = log(tmp_path)[0]
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert line["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert line["kl"] == pytest.approx(kl.mean().item(), rel=1e-5)  # reported unweighted
    assert line["loss/ce"] == pytest.approx(((weights * ce).sum() / weights.sum()).item(), rel=1e-5)
    assert line["loss/ce"] != pytest.approx(line["ce"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_weigh_as_one_does_from_the_command_line(
    world: World, tmp_path: Path
) -> None:
    more = ["--packs-per-step", "4", "--epochs", "1", "--loss", "jsd=1", "--loss"]
    more += ["ce=cosine:1:0.1", "--jsd-beta", "0.2", "--entropy-weight", "0.5"]
    more += [x for flag in KIND_FLAGS for x in ("--kind-weight", flag)]
    flags = command(world, tmp_path / "two")
    del flags[flags.index("--packs-per-step") : flags.index("--packs-per-step") + 2]
    del flags[flags.index("--epochs") : flags.index("--epochs") + 2]
    code, errors = run_ranks([*flags, *more])
    assert code == 0, errors
    settings: dict[str, Any] = {"loss": ("jsd=1", "ce=cosine:1:0.1"), "jsd_beta": 0.2}
    settings |= {"entropy_weight": 0.5, "kind_weight": KIND_FLAGS, "epochs": 1}
    train(config(world, tmp_path / "one", **settings))
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 4
    for ours, theirs in zip(one, two):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    last = one[-1]
    assert last["loss"] == pytest.approx(last["loss/jsd"] + 0.1 * last["loss/ce"])
    assert one[0]["loss"] == pytest.approx(one[0]["loss/jsd"] + one[0]["loss/ce"])
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["config"]["loss"] == ["jsd=1", "ce=cosine:1:0.1"]


def test_the_warning_is_printed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(world, tmp_path, loss=("renormalized_kl=1",), temperature=2.0, max_steps=1))
    assert "warning: renormalized_kl leaves the student free" in capsys.readouterr().err


def test_terms_are_plain_data() -> None:
    assert objective("ce=1").terms == (LossTerm(name="ce", start=1.0, stop=1.0),)
