"""Rows longer than a student's positions are refused; relative ones continue, with a warning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import config
from tests.trainer.student.families import family_config
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.student.context_check import check_context, context_length
from trainer.student.student import Student, make_student
from trainer.train.loop import train

TABLES = ("gpt2", "gpt_bigcode", "gptj", "codegen", "opt", "ctrl", "gpt_neo", "biogpt", "mpt")
"""Families with a learned or computed table of positions."""
RELATIVE = ("llama", "qwen3", "gemma3_text", "gpt_neox", "lfm2", "qwen3_next", "falcon7")
UNLIMITED = ("mamba", "mamba2", "bloom")


def student_of(family: str, context: int) -> Student:
    settings = family_config(family)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if hasattr(settings, name):
            setattr(settings, name, context)
    torch.manual_seed(0)
    return make_student(AutoModelForCausalLM.from_config(settings), 280)


@pytest.mark.parametrize("family", TABLES)
def test_a_table_of_positions_ends(family: str) -> None:
    student = student_of(family, 64)
    assert context_length(student.model.config) == 64
    assert check_context(student, 64) is None
    reason = "the longest row has 65 tokens, and the student, a .* has 64 positions"
    with pytest.raises(SoftshardsError, match=reason):
        check_context(student, 65)


@pytest.mark.parametrize("family", RELATIVE)
def test_relative_positions_continue(family: str) -> None:
    student = student_of(family, 64)
    assert check_context(student, 64) is None
    assert "has 65 tokens, the student's context 64" in (check_context(student, 65) or "")
    assert student.training  # as it was


@pytest.mark.parametrize("family", UNLIMITED)
def test_no_limit(family: str) -> None:
    student = student_of(family, 64)
    assert context_length(student.model.config) is None
    assert check_context(student, 10**6) is None


@pytest.fixture(scope="module")
def short(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 47 positions; the longest row has 48 tokens."""
    folder = tmp_path_factory.mktemp("short") / "student"
    shutil.copytree(world.student, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = family_config("gpt2", vocab_size=world.vocab_size + 20)
    settings.n_positions = 47
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


def test_a_run_is_refused_before_it_begins(world: World, short: Path, tmp_path: Path) -> None:
    for more in ({}, {"dry_run": True}):
        with pytest.raises(
            SoftshardsError, match=r"has 48 tokens, and the student, .* 47 positions"
        ):
            train(config(world, tmp_path / "run", student=short, **more))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_measurement_is_refused(world: World, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    with pytest.raises(SoftshardsError, match=r"has 48 tokens, and the student, .* 47 positions"):
        measure_models(EvaluateConfig(labels=world.labels, model=(short,), out=out))
