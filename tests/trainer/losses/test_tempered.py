"""Losses over top-k and tail at temperatures that a set was labeled at, against dense ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from schemas import LabelSetError, SoftshardsError, open_label_set
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.losses.dense import ALPHA, BETA, DENSE
from tests.trainer.losses.state_labels import run_teacher
from tests.trainer.ops.test_devices import relative
from tests.trainer.running import config
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.data.mixture import Part
from trainer.data.tempered import at_temperature
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.losses.objective import LossTerm, Objective, TokenWeighting
from trainer.student.student import load_student
from trainer.train.loop import train

TEMPERATURES = (4.0, 2.0)


@pytest.fixture(scope="module")
def labels(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_label_set(
        tmp_path_factory.mktemp("tempered") / "set",
        world.teacher,
        random_rows(12, world.vocab_size, seed=3),
        vocab_size=world.vocab_size,
        label_temperatures=TEMPERATURES,
    )


def first(labels: Path, temperature: float) -> Batch:
    dataset = LabelDataset(labels, pack_tokens=128, temperature=temperature)
    return collate(next(iter(dataset)))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_logprobs_at_a_temperature_follow_from_the_tail(
    world: World, labels: Path, temperature: float
) -> None:
    batch = first(labels, temperature)
    assert batch.tempered_tail is not None
    dense = (run_teacher(world.teacher, batch)[0] / temperature).log_softmax(1)
    found = at_temperature(batch.topk_logprobs, batch.tempered_tail, temperature)
    expected = dense.gather(1, batch.topk_ids)
    torch.testing.assert_close(found.double(), expected, atol=4e-3, rtol=0)
    covers = at_temperature(torch.tensor([[-1.0, -2.0]]), torch.tensor([-torch.inf]), 2.0)
    torch.testing.assert_close(covers.exp().sum(1), torch.ones(1))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DENSE)
def test_gradients_equal_the_dense_bucketed_loss(
    world: World, labels: Path, name: str, temperature: float
) -> None:
    """Both sides are bucketed from dense logits at T in float64, over the stored ids."""
    objective = Objective(
        terms=(LossTerm(name=name, start=1, stop=1), LossTerm(name="ce", start=1, stop=1)),
        temperature=temperature, jsd_beta=BETA, skew_alpha=ALPHA,
    )  # fmt: skip
    student = load_student(world.student, open_label_set(labels))
    batch = first(labels, temperature)
    output = student(batch, temperature=objective.tail_temperature)
    weights = token_weights(TokenWeighting(), batch)
    loss, parts = batch_loss(objective, output, batch, weights, [1.0, 1.0])
    ours = torch.autograd.grad(loss, list(student.parameters()))
    exact = student.double()
    head = exact.model.get_output_embeddings()
    z = (exact.hidden(batch) @ head.weight.T)[:, : world.vocab_size]

    def buckets(logits: torch.Tensor) -> torch.Tensor:
        p = (logits / temperature).softmax(1)
        kept = p.gather(1, batch.topk_ids)
        return torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)

    teacher = run_teacher(world.teacher, batch)[0]
    tempered = temperature**2 * DENSE[name](buckets(teacher), buckets(z))
    ce = -z.log_softmax(1).gather(1, batch.targets[:, None])[:, 0]
    theirs = torch.autograd.grad((tempered + ce).sum(), list(exact.parameters()))
    torch.testing.assert_close(parts[2].double(), tempered.detach().sum(), rtol=1e-2, atol=1e-2)
    bound = 5e-2 if name == "tvd" else 2e-2  # labels are stored in float16
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < bound


def test_a_mixture_takes_each_set_s_own_place(world: World, labels: Path, tmp_path: Path) -> None:
    other = build_label_set(
        tmp_path / "other",
        world.teacher,
        random_rows(12, world.vocab_size, seed=3),
        vocab_size=world.vocab_size,
        label_temperatures=(2.0,),
    )
    tails = [first(path, 2.0).tempered_tail for path in (labels, other)]
    assert tails[0] is not None
    assert torch.equal(*tails)
    parts = tuple(Part(labels=open_label_set(path)) for path in (labels, other))
    packs = list(LabelDataset(parts, pack_tokens=128, temperature=2.0))
    found = torch.cat([t for p in packs if (t := collate(p).tempered_tail) is not None])
    assert len(found) == 2 * parts[0].labels.labels
    with pytest.raises(LabelSetError, match="--label-temperatures 4") as refused:
        LabelDataset(parts, pack_tokens=128, temperature=4.0)
    assert "T = 1, 2" in str(refused.value)


def test_training_at_a_temperature(world: World, labels: Path, tmp_path: Path) -> None:
    run = config(world, tmp_path / "run", labels=labels, loss=("forward_kl=1",), temperature=2.0)
    assert train(run) == 0
    with pytest.raises(SoftshardsError, match="--label-temperatures 3"):
        train(config(world, tmp_path / "three", labels=labels, temperature=3.0))
    with pytest.raises(SoftshardsError, match="changes nothing"):
        config(world, tmp_path / "ce", labels=labels, loss=("ce=1",), temperature=2.0)
