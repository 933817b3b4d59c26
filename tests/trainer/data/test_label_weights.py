"""Labels that were sampled count with their weights, alone and in mixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from schemas import open_label_set
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.data.check_rows import value_problem
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.data.mixture import open_mixture
from trainer.losses import forward_kl
from trainer.losses.batch_loss import token_weights
from trainer.losses.objective import TokenWeighting
from trainer.student.student import load_student
from trainer.train.loop import train


@pytest.fixture(scope="module")
def sampled(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose labels have the weights 1, 2, 3, 4, 1, ... in each row."""
    rows = random_rows(10, world.vocab_size, seed=7)
    rows = [row.__class__(**(vars(row) | {"id": f"sampled-{row.id}"})) for row in rows]
    path = tmp_path_factory.mktemp("sampled") / "labels"
    settings = {"vocab_size": world.vocab_size, "keep_positions": "sample 0.2"}
    return build_label_set(path, world.teacher, rows, **settings)


def test_weights_reach_the_loss(world: World, sampled: Path) -> None:
    pack = next(iter(LabelDataset(sampled, pack_tokens=128)))
    batch = collate(pack)
    counts = [int((batch.documents == n).sum()) for n in range(len(pack.rows))]
    expected = torch.cat([1.0 + torch.arange(n) % 4 for n in counts])
    assert torch.equal(token_weights(TokenWeighting(), batch), expected)
    halved = token_weights(TokenWeighting(kinds=(0.5,) * 5), batch)
    assert torch.equal(halved, expected / 2)
    whole = collate(next(iter(LabelDataset(world.labels, pack_tokens=128))))
    assert whole.label_weights is None


def test_other_sets_of_a_mixture_count_once(world: World, sampled: Path) -> None:
    for first, mix in ((world.labels, str(sampled)), (sampled, str(world.labels))):
        parts = open_mixture(open_label_set(first), (mix,))
        for pack in LabelDataset(parts, pack_tokens=128, window=3, meta=True):
            weights = pack.window.labels.label_weights
            assert weights is not None
            for key, row in zip(pack.keys, pack.rows):
                here = weights[slice(*pack.window.label_offsets[row : row + 2])]
                assert here.max() == (min(4, len(here)) if key.startswith("sampled") else 1)


def test_a_step_minimizes_the_weighted_mean(world: World, sampled: Path, tmp_path: Path) -> None:
    """Its loss and gradient are those of sum w l / sum w over all labels of the step."""
    flags = {"labels": sampled, "epochs": 1, "packs_per_step": 100, "clip": 0.0}
    flags |= {"loss": ("forward_kl=1",)}
    train(config(world, tmp_path / "run", **flags))
    (line,) = log(tmp_path / "run")
    student = load_student(world.student, open_label_set(sampled))
    total, count = torch.zeros(()), 0.0
    for pack in LabelDataset(sampled, pack_tokens=128):
        batch = collate(pack)
        output = student(batch)
        values = forward_kl(batch.topk_logprobs, batch.tail_logprob, output.logp, output.log_rest)
        weights = batch.label_weights
        assert weights is not None
        total, count = total + (weights * values).sum(), count + float(weights.sum())
    loss = total / count
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_weights_that_are_none_are_refused(sampled: Path) -> None:
    labels = next(iter(LabelDataset(sampled, pack_tokens=128))).window.labels
    assert labels.label_weights is not None
    offsets = [0, 3, len(labels)]
    assert value_problem(labels, offsets, 10**6) is None  # type: ignore[arg-type]
    for wrong in (-1.0, float("nan"), float("inf")):
        labels.label_weights[4] = wrong
        row, what = value_problem(labels, torch.tensor(offsets).numpy(), 10**6) or (0, "")
        assert row == 1
        assert what.startswith("label_weights has a weight below 0")
