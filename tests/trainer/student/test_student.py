from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from schemas import IdentityError, SoftshardsError, open_label_set
from schemas.fingerprint import tokenizer_digest
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.student import student as student_module
from trainer.student.label_head import LabelHead
from trainer.student.student import Student, check_head, count_parameters, load_student


def test_head_gives_logits_without_ids_and_labels_with_them(world: World) -> None:
    labels = open_label_set(world.labels)
    student = load_student(world.student, labels).eval()
    head = student.model.get_output_embeddings()
    assert isinstance(head, LabelHead)
    assert head.weight is student.model.get_input_embeddings().weight  # still tied
    batch = collate(next(iter(LabelDataset(labels, pack_tokens=128))))
    with torch.no_grad():
        logits = student.model(**batch.model_inputs).logits[0, batch.rows, : world.vocab_size]
        logp, log_rest, target, *_ = student(batch)
    dense = logits.log_softmax(-1)  # without the padded ids
    torch.testing.assert_close(logp, dense.gather(1, batch.topk_ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(target, dense.gather(1, batch.targets[:, None])[:, 0])
    total = logp.exp().sum(1) + log_rest.exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_op_runs_inside_the_heads_forward(world: World) -> None:
    """Under FSDP the weight is whole only between the head's own hooks."""
    labels = open_label_set(world.labels)
    student = load_student(world.student, labels)
    inside: list[str] = []
    head = student.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: inside.append("in"))
    student(collate(next(iter(LabelDataset(labels, pack_tokens=128)))))
    assert inside == ["in"]


def test_student_with_a_different_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world.student, other)
    make_tokenizer(other, vocab_size=280, text=["zebras quiz foxy jumps over lazy dogs"])
    with pytest.raises(IdentityError) as caught:
        load_student(other, open_label_set(world.labels))
    message = str(caught.value)
    assert "tokenizer is not the teacher's" in message
    assert tokenizer_digest(other)[:16] in message
    assert "for example id" in message
    assert "vocabulary: student" in message
    assert "hint:" in message


def test_student_without_a_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    make_model(tmp_path, vocab_size=world.vocab_size, layers=1)
    with pytest.raises(IdentityError, match="has no tokenizer"):
        load_student(tmp_path, open_label_set(world.labels))
    random = load_student(tmp_path, open_label_set(world.labels), from_config=True)
    assert count_parameters(random.model)["parameters"] > 0


def test_student_with_too_few_ids_is_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.student, tmp_path, dirs_exist_ok=True)
    make_model(tmp_path, vocab_size=world.vocab_size - 10, layers=1)
    with pytest.raises(SoftshardsError, match="rows, fewer than the tokenizer's"):
        load_student(tmp_path, open_label_set(world.labels))


def test_scaled_and_unknown_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    student = Student(GraniteForCausalLM(config), 60)
    check_head(student)
    monkeypatch.setattr(student, "scale", 1.0)
    monkeypatch.setattr(student_module, "HEAD_CHECK_TOLERANCE", 1e-6)
    with pytest.raises(SoftshardsError, match="transforms its logits"):
        check_head(student)


def test_random_student_depends_on_the_seed_alone(world: World) -> None:
    labels = open_label_set(world.labels)
    one, two, three = (
        next(load_student(world.student, labels, from_config=True, seed=s).parameters())
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
