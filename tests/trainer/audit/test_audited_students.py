"""Students that the audit takes: of chats, by LoRA, with ids of their own, in bf16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas import open_label_set
from tests.trainer.audit.test_audit_command import flags, run, silent
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import config as train_config
from trainer.audit.audit_results import AuditResults, Share
from trainer.audit.continuations import Speaker
from trainer.ops.bf16_support import emulation_warning
from trainer.train.loop import train


def test_chats_are_continued_in_the_students_context(world: World, tmp_path: Path) -> None:
    """The teacher's context is another one: there, the student would not say these answers."""
    rows = random_rows(6, world.vocab_size, seed=3, shortest=9, longest=9)
    speaker = Speaker(world.student, open_label_set(world.labels), "fp32")
    turns = random_rows(6, world.vocab_size, seed=4, shortest=4, longest=4)
    given = [np.array(row.input_ids, np.int32) for row in turns]
    for row, turn, said in zip(rows, given, speaker.continue_greedily(given, [6] * 6, silent)):
        row.input_ids += said.tolist()
        row.spans = [(9, 15, "answer")]
        row.student_input_ids = [*turn.tolist(), *said.tolist()]
        row.student_spans = [(4, 10, "answer")]
    labels = build_label_set(tmp_path / "set", world.teacher, rows, vocab_size=world.vocab_size)
    out = tmp_path / "audit.json"
    assert run(*flags(world, out, "--model", world.student, labels=labels)) == 0
    (model,) = AuditResults.open(out).models
    assert model.memorization.extracted == Share(found=6, of=6)
    assert {row.start for row in model.memorization.rows} == {4}


def test_a_lora_run_is_audited_with_its_adapters_merged(world: World, tmp_path: Path) -> None:
    assert train(train_config(world, tmp_path / "run", lora_r=4, epochs=1, lr=1e-1)) == 0
    final, out = tmp_path / "run" / "final", tmp_path / "audit.json"
    labels = open_label_set(world.labels)
    prefix = [np.array([5, 6, 7, 8], np.int32)]
    merged, before = (
        Speaker(path, labels, "fp32").log_likelihoods(prefix, silent)
        for path in (final, world.student)
    )
    assert abs(merged - before) > 1e-3
    assert run(*flags(world, out, "--model", final, "--control", world.student)) == 0
    model, control = AuditResults.open(out).models
    assert model.weights != control.weights
    assert model.memorization.extracted.of == control.memorization.extracted.of == 8


@pytest.fixture(scope="module")
def permuted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with its ids in reverse order: the same function of text."""
    path = tmp_path_factory.mktemp("permuted") / "student"
    shutil.copytree(world.student, path)
    content = json.loads((path / "tokenizer.json").read_text())
    size = world.vocab_size
    content["model"]["vocab"] = {
        token: size - 1 - number for token, number in content["model"]["vocab"].items()
    }
    for token in content["added_tokens"]:
        token["id"] = size - 1 - token["id"]
    (path / "tokenizer.json").write_text(json.dumps(content))
    weights = load_file(path / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([table[:size].flip(0), table[size:]])
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_other_ids_of_the_same_tokens_change_nothing(
    world: World, permuted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags(world, tmp_path / "no.json", "--model", permuted)) == 2
    assert "--vocab-map accepts one" in " ".join(capsys.readouterr().err.split())
    found = []
    for model, more in ((world.student, []), (permuted, ["--vocab-map"])):
        out = tmp_path / f"{model.parent.name}.json"
        assert run(*flags(world, out, "--model", model, *more)) == 0
        found.append(AuditResults.open(out).models[0].memorization)
    assert found[0] == found[1]
    assert found[0].longest > 0
    labels = open_label_set(world.labels)
    ids = [np.array(row.input_ids[:6], np.int32) for row in world.rows[:4]]
    own = Speaker(world.student, labels, "fp32").log_likelihoods(ids, silent)
    mapped = Speaker(permuted, labels, "fp32", map_vocab=True).log_likelihoods(ids, silent)
    np.testing.assert_allclose(mapped, own, rtol=1e-5)


def test_emulated_bf16_is_warned_of(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    assert run(*flags(world, out, "--model", world.student, "--dtype", "bf16")) == 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warning = emulation_warning(device)
    assert ("emulates bf16" in capsys.readouterr().err) == (warning is not None)
