"""`--loss sampled`: cross-entropy to ids drawn from the teacher, from the label set to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas import SoftshardsError, decode, open_label_set, validate_label_set
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.losses import sampled_cross_entropy
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.losses.objective import LossTerm, Objective, TokenWeighting
from trainer.student.student import Student, load_student
from trainer.train.loop import train

DRAWS = 30


@pytest.fixture(scope="module")
def drawn(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "labels"
    vocab = open_label_set(world.labels).manifest.identity.vocab_size
    rows = random_rows(12, vocab, seed=4)
    build_label_set(path, world.teacher, rows, vocab_size=vocab, k=6, draws=DRAWS)
    assert list(validate_label_set(open_label_set(path))) == []
    return path


def first_batch(student: Student, labels: Path, *, with_drawn: bool = True) -> Batch:
    pack = next(iter(LabelDataset(labels, pack_tokens=128, drawn=with_drawn)))
    return collate(pack, attention=student.attention)


def test_one_pass_of_the_head_equals_a_dense_softmax(world: World, drawn: Path) -> None:
    student = load_student(world.student, open_label_set(drawn))
    batch = first_batch(student, drawn)
    assert batch.drawn_ids is not None
    assert batch.drawn_counts is not None
    assert (batch.drawn_counts.sum(1) == DRAWS).all()
    head: Any = student.model.get_output_embeddings()
    logits = student.hidden(batch) @ head.weight.T
    dense = logits[:, : student.valid_vocab].log_softmax(1)
    output = student(batch)
    plain = student(first_batch(student, drawn, with_drawn=False))
    for name in ("logp", "log_rest", "target_logp"):
        torch.testing.assert_close(getattr(output, name), getattr(plain, name))
    real = batch.drawn_counts > 0
    want = dense.gather(1, batch.drawn_ids.clamp_min(0))
    torch.testing.assert_close(output.drawn_logp[real], want[real])

    parameters = [p for p in student.parameters() if p.requires_grad]
    kinds = ("sampled", "forward_kl")
    objective = Objective(terms=tuple(LossTerm(name=n, start=1, stop=1) for n in kinds))
    weights = token_weights(TokenWeighting(), batch)
    loss, _ = batch_loss(objective, output, batch, weights, [1.0, 1.0])
    ours = torch.autograd.grad(loss, parameters)
    share = torch.zeros_like(dense).scatter_add_(
        1, batch.drawn_ids.clamp_min(0), batch.drawn_counts.to(dense.dtype) / DRAWS
    )
    topk, rest = dense.gather(1, batch.topk_ids), torch.ones_like(dense, dtype=torch.bool)
    rest.scatter_(1, batch.topk_ids, False)
    log_rest = dense.masked_fill(~rest, -torch.inf).logsumexp(1)
    student_logs = torch.cat([topk, log_rest[:, None]], 1)
    teacher_logs = torch.cat([batch.topk_logprobs, batch.tail_logprob[:, None]], 1)
    kl = (teacher_logs.exp() * (teacher_logs - student_logs)).sum()
    theirs = torch.autograd.grad(kl - (share * dense).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_with_the_whole_vocabulary_stored_as_well(world: World, tmp_path: Path) -> None:
    """No id is outside the top-k: the mass of the rest is 0, and gradients stay finite."""
    vocab = open_label_set(world.labels).manifest.identity.vocab_size
    rows = random_rows(2, vocab, seed=4)
    path = build_label_set(
        tmp_path / "all", world.teacher, rows, vocab_size=vocab, k=vocab, draws=DRAWS
    )
    student = load_student(world.student, open_label_set(path))
    batch = first_batch(student, path)
    output = student(batch)
    assert batch.drawn_counts is not None
    loss = sampled_cross_entropy(batch.drawn_counts, output.drawn_logp).sum()
    loss = loss + output.log_rest.exp().sum()
    grads = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


@pytest.mark.slow
def test_training_on_draws_approaches_the_teacher(
    world: World, drawn: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"labels": drawn, "loss": ("sampled=1",), "epochs": 40, "lr": 3e-3}
    run = config(world, tmp_path / "run", **settings)
    assert train(run) == 0
    lines = log(run.out)
    assert lines[-1]["loss"] == lines[-1]["loss/sampled"] < lines[0]["loss/sampled"]
    assert lines[-1]["kl"] < 0.7 * lines[0]["kl"], "reported, not minimized"


def test_sets_without_draws_are_refused_before_the_first_step(
    world: World, drawn: Path, tmp_path: Path
) -> None:
    with pytest.raises(SoftshardsError, match=r"--loss sampled needs(.|\n)*--draws 50"):
        train(config(world, tmp_path / "run", loss=("sampled=1",)))
    mixed = config(
        world, tmp_path / "run", labels=drawn, mix=(str(world.labels),), loss=("sampled=1",)
    )
    with pytest.raises(SoftshardsError, match="--loss sampled needs"):
        train(mixed)
    student = load_student(world.student, open_label_set(world.labels))
    with pytest.raises(SoftshardsError, match="hold no drawn ids"):
        first_batch(student, world.labels)


def test_one_process_reads_what_was_drawn(drawn: Path) -> None:
    labels = open_label_set(drawn)
    stored = decode(labels.read_row_group(labels.row_groups[0])).labels
    pack = next(iter(LabelDataset(drawn, pack_tokens=512, window=1, drawn=True)))
    assert stored.sample_counts is not None
    assert pack.window.labels.sample_counts is not None
    np.testing.assert_array_equal(pack.window.labels.sample_counts, stored.sample_counts)
