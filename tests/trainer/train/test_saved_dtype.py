"""Trained models have the dtype of their checkpoint, and the files that training leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.student.load_model import stored_dtype
from trainer.train.loop import train

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative; float16 has numbers below its smallest normal one, too."""


def student_of(world: World, folder: Path, dtype: torch.dtype, /, **changes: Any) -> Path:
    """Copy the student in another dtype, with changes to its config.json (None removes)."""
    shutil.copytree(world.student, folder)
    model = AutoModelForCausalLM.from_pretrained(world.student, dtype=dtype)
    model.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def dtypes(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("more", [{}, {"lora_r": 2}, {"from_config": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_final_has_the_dtype_of_the_student(
    world: World, tmp_path: Path, dtype: torch.dtype, more: dict[str, Any]
) -> None:
    student = student_of(world, tmp_path / "student", dtype)
    assert stored_dtype(student) == dtype
    settings: dict[str, Any] = {"student": student, "max_steps": 2, **more}
    for name, extra in (("own", {}), ("exact", {"save_dtype": "fp32"})):
        train(config(world, tmp_path / name, **settings, **extra))
    own, exact = (load_file(tmp_path / n / "final/model.safetensors") for n in ("own", "exact"))
    assert dtypes(tmp_path / "own" / "final") == {dtype}
    assert dtypes(tmp_path / "exact" / "final") == {torch.float32}
    assert log(tmp_path / "own") == log(tmp_path / "exact")
    for name, value in exact.items():
        torch.testing.assert_close(own[name].float(), value, rtol=ROUNDING[dtype], atol=1e-7)
        assert torch.equal(own[name], value.to(dtype))
    for name, expected in (("own", NAMES[dtype]), ("exact", "float32")):
        assert json.loads((tmp_path / name / "final/config.json").read_text())["dtype"] == expected
        assert json.loads((tmp_path / name / "result.json").read_text())["dtype"] == expected
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "own" / "final", dtype="auto")
    assert again.dtype == dtype


@pytest.mark.parametrize("keep_best", [False, True])
def test_best_and_final_are_alike(world: World, tmp_path: Path, keep_best: bool) -> None:
    student = student_of(world, tmp_path / "student", torch.bfloat16)
    more: dict[str, Any] = {"keep_best": True, "eval_every": 1} if keep_best else {}
    train(
        config(
            world, tmp_path / "run", student=student, max_steps=2, eval_labels=world.labels, **more
        )
    )
    assert (tmp_path / "run" / "best").exists() == keep_best
    for name in ("best", "final") if keep_best else ("final",):
        assert dtypes(tmp_path / "run" / name) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": None}, torch.bfloat16),  # that of the weights
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": None, "torch_dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, torch.float16),
        ({"dtype": "bfloat16", "text_config": {"dtype": "float16"}}, torch.bfloat16),
        ({"dtype": "float64"}, torch.float32),
        ({"dtype": "float8_e4m3fn"}, torch.float32),
    ],
)
def test_stored_dtype(
    world: World, tmp_path: Path, changes: dict[str, Any], expected: torch.dtype
) -> None:
    folder = student_of(world, tmp_path / "student", torch.bfloat16, **changes)
    assert stored_dtype(folder) == expected


def test_stored_dtype_of_mixed_weights_is_that_of_the_largest(world: World, tmp_path: Path) -> None:
    folder = student_of(world, tmp_path / "student", torch.bfloat16, dtype=None)
    weights = load_file(folder / "model.safetensors")
    small = min(weights, key=lambda name: weights[name].numel())
    save_file(weights | {small: weights[small].float()}, folder / "model.safetensors")
    assert stored_dtype(folder) == torch.bfloat16
    (folder / "model.safetensors").unlink()
    assert stored_dtype(folder) == torch.float32


@pytest.mark.parametrize("from_config", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        '{"temperature": 0.6, "do_sample": true, "eos_token_id": [0, 7]}',
        '{"temperature": 0.6, "do_sample": false, "top_p": 0.9, "eos_token_id": 0}',
        '{"eos_token_id": 0, "transformers_version": "4.0.0", "of_the_future": 1}',
    ],
)
def test_generation_config_is_kept(
    world: World, tmp_path: Path, text: str, from_config: bool
) -> None:
    """Also one that transformers would refuse to write after all the training."""
    student = student_of(world, tmp_path / "student", torch.float32)
    (student / "generation_config.json").write_text(text)
    (student / "preprocessor_config.json").write_text("{}")
    out = tmp_path / "run"
    train(config(world, out, student=student, from_config=from_config, max_steps=1))
    assert (out / "final" / "generation_config.json").read_text() == text
    assert (out / "final" / "preprocessor_config.json").read_text() == "{}"
    assert not (out / "final" / "processor_config.json").exists()
