from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas import LabelSetError, open_label_set
from tests.trainer.build_label_set import label_row, teacher_logprobs
from tests.trainer.conftest import World
from trainer.data.collate import block_causal_mask, collate
from trainer.data.dataset import LabelDataset, Pack
from trainer.data.distributions import as_distributions
from trainer.data.window import Window
from trainer.losses.batch_loss import label_losses
from trainer.student.student import Student, load_student


@pytest.fixture(scope="module")
def packs(world: World) -> list[Pack]:
    return list(LabelDataset(world.labels, pack_tokens=160, window=4))


@pytest.fixture(scope="module")
def student(world: World) -> Student:
    return load_student(world.student, open_label_set(world.labels)).eval()


def test_labels_meet_the_state_before_their_token(world: World, packs: list[Pack]) -> None:
    """The teacher, run on packed rows, reproduces its own labels: alignment end to end."""
    teacher = Student(LlamaForCausalLM.from_pretrained(world.teacher), world.vocab_size).eval()
    for pack in packs:
        batch = collate(pack)
        with torch.no_grad():
            logp, log_rest, target, *_ = teacher(batch)
        torch.testing.assert_close(logp, batch.topk_logprobs, atol=4e-3, rtol=0)
        torch.testing.assert_close(log_rest, batch.tail_logprob, atol=4e-3, rtol=0)
        torch.testing.assert_close(target, batch.token_logprob, atol=8e-3, rtol=0)


def test_batch_follows_the_rows(world: World, packs: list[Pack]) -> None:
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    for pack in packs:
        batch = collate(pack)
        start, label = 0, 0
        for key in pack.keys:
            row = rows[key]
            stop = start + len(row.input_ids)
            assert batch.input_ids[0, start:stop].tolist() == row.input_ids
            assert batch.position_ids[0, start:stop].tolist() == list(range(len(row.input_ids)))
            for t in (t for a, b, _ in row.spans for t in range(a, b)):
                assert batch.rows[label] == start + t - 1
                assert batch.targets[label] == row.input_ids[t]
                label += 1
            start = stop
        assert (start, label) == (batch.input_ids.shape[1], len(batch.targets))


def test_padded_batch_follows_the_rows(world: World) -> None:
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    for pack in LabelDataset(world.labels, pack_tokens=160, padded=True, window=4):
        batch = collate(pack, attention="padded")
        assert batch.real is not None
        lengths = [len(rows[key].input_ids) for key in pack.keys]
        assert batch.input_ids.shape == batch.position_ids.shape == (len(lengths), max(lengths))
        assert batch.input_ids.numel() <= 160
        assert batch.real.sum(1).tolist() == lengths
        labels = iter(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True))
        for index, key in enumerate(pack.keys):
            row = rows[key]
            assert batch.input_ids[index][batch.real[index]].tolist() == row.input_ids
            for t in (t for a, b, _ in row.spans for t in range(a, b)):
                assert next(labels) == (index * max(lengths) + t - 1, row.input_ids[t])
        assert not list(labels)


def test_teacher_sums_to_one(packs: list[Pack]) -> None:
    batch = collate(packs[0])
    total = batch.topk_logprobs.exp().sum(1) + batch.tail_logprob.exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_mask_is_block_diagonal_and_causal() -> None:
    mask = block_causal_mask(np.array([2, 3]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("attention", ["mask", "documents", "positions"])
def test_no_cross_document_attention(
    world: World, student: Student, packs: list[Pack], attention: str
) -> None:
    """Changing one document does not change any other document's states, not by a single bit."""
    if attention == "positions":
        student = Student(LlamaForCausalLM.from_pretrained(world.student), world.vocab_size)
    batch = collate(packs[0], attention=attention)  # type: ignore[arg-type]
    starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) > 2
    changed = batch.input_ids.clone()
    changed[0, starts[1] : starts[2]] = (changed[0, starts[1] : starts[2]] + 7) % 250
    base = student.model.base_model
    with torch.no_grad():
        inputs = batch.model_inputs
        before = base(**inputs).last_hidden_state[0]
        after = base(**(inputs | {"input_ids": changed})).last_hidden_state[0]
    same = (before == after).all(1)
    inside = torch.zeros_like(same)
    inside[starts[1] : starts[2]] = True
    assert same[~inside].all()
    assert not same[inside].any()


@pytest.mark.parametrize(
    ("attention", "pad_to"),
    [
        *((name, to) for name in ("mask", "documents", "positions") for to in (None, 200)),
        ("padded", None),
    ],
)
def test_packed_loss_equals_unpacked_loss(
    world: World, student: Student, packs: list[Pack], attention: str, pad_to: int | None
) -> None:
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    teacher = LlamaForCausalLM.from_pretrained(world.teacher).eval()
    if attention in ("positions", "padded"):
        student = Student(LlamaForCausalLM.from_pretrained(world.student), world.vocab_size)
    pack = packs[0]
    batch = collate(pack, attention=attention, pad_to=pad_to)  # type: ignore[arg-type]
    with torch.no_grad():
        kl, ce = label_losses(student(batch), batch)
    expected_ce, expected_kl = [], []
    for key in pack.keys:
        row = rows[key]
        logp = teacher_logprobs(student.model, row.input_ids, world.vocab_size)
        labels = label_row(teacher, row, world.vocab_size, 8)
        at = [t for a, b, _ in row.spans for t in range(a, b)]
        ours = logp[[t - 1 for t in at]]
        expected_ce += (-ours[range(len(at)), [row.input_ids[t] for t in at]]).tolist()
        ids = torch.from_numpy(labels.topk_ids).long()
        rest = ours.scatter(1, ids, float("-inf")).logsumexp(1)
        top, tail = (
            torch.from_numpy(a).double() for a in (labels.topk_logprobs, labels.tail_logprob)
        )
        kl_row = (top.exp() * (top - ours.gather(1, ids))).sum(1) + tail.exp() * (tail - rest)
        expected_kl += kl_row.tolist()
    np.testing.assert_allclose(ce.numpy(), expected_ce, atol=2e-5)
    np.testing.assert_allclose(kl.numpy(), expected_kl, atol=2e-3)  # labels are float16


def test_labels_that_are_not_a_distribution_are_named(packs: list[Pack]) -> None:
    """The hashes match, but a different program wrote the labels."""
    pack = packs[0]
    first = int(pack.window.label_offsets[pack.rows[2]])  # of the pack's third row

    def damaged(**arrays: np.ndarray) -> Window:
        return replace(pack.window, labels=replace(labels, **arrays))

    labels = pack.window.labels
    ids = labels.topk_ids.copy()
    ids[first, 5] = ids[first, 1]
    with pytest.raises(LabelSetError, match=r"1 of \d+ labels hold an id twice") as error:
        as_distributions(damaged(topk_ids=ids))
    assert pack.keys[2] in str(error.value)
    assert "labeler verify" in str(error.value)
    drawn = {"sample_ids": ids, "sample_counts": np.ones_like(ids)}
    with pytest.raises(LabelSetError, match=r"1 of \d+ labels hold an id twice"):
        as_distributions(damaged(**drawn))
    empty, tail = labels.topk_logprobs.copy(), labels.tail_logprob.copy()
    empty[first], tail[first] = -np.inf, -np.inf
    with pytest.raises(LabelSetError, match=r"1 of \d+ labels hold no mass") as error:
        as_distributions(damaged(topk_logprobs=empty, tail_logprob=tail))
    assert pack.keys[2] in str(error.value)
    less = labels.tail_logprob.copy()
    less[first] -= 9
    heavy = labels.topk_logprobs.copy()
    heavy[first] -= 0.2
    with pytest.raises(LabelSetError, match="do not sum to one"):
        as_distributions(damaged(topk_logprobs=heavy, tail_logprob=less))
