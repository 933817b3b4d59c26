"""What differs from the usual way is said in one line each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError
from tests.trainer.student.families import family_config
from trainer.student.attention_ways import Packing
from trainer.student.load_model import load_model
from trainer.student.student import Student, make_student

EAGER = "attention is transformers' eager one, .* memory grows with the square of the pack"
EAGER_ROWS = "attention is transformers' eager one, .* memory grows with the square of the row"
PADDED = "documents are padded, not packed: "


def student_of(family: str, packing: Packing = "auto") -> Student:
    torch.manual_seed(1)
    return make_student(
        AutoModelForCausalLM.from_config(family_config(family)), 280, packing=packing
    )


@pytest.mark.parametrize(
    ("family", "notes"),
    [
        ("llama", []),
        ("gemma3_text", []),
        ("nemotron", []),
        ("gemma2", [EAGER]),
        ("gptj", [EAGER]),
        ("gpt_oss", [EAGER]),
        ("mpt", [EAGER]),
        ("lfm2", [f"{PADDED}its conv layers would leak"]),
        ("mamba", [f"{PADDED}its .* layers would leak"]),
        ("qwen3_next", [f"{PADDED}its linear_attention layers would leak"]),
        ("llama4_text", [f"{PADDED}its chunked_attention layers would leak"]),
        ("bloom", [f"{PADDED}packed documents see each other .*", EAGER_ROWS]),
        ("gemma3_vision", ["only the text part is trained: .*vision_tower.* stay as they are"]),
    ],
)
def test_notes(family: str, notes: list[str]) -> None:
    found = student_of(family).notes
    assert len(found) == len(notes)
    for line, pattern in zip(found, notes, strict=True):
        assert "\n" not in line
        assert re.match(pattern, line), line


def test_padding_that_was_asked_for_is_not_told() -> None:
    student = student_of("llama", packing="off")
    assert student.attention == "padded"
    assert student.notes == []


@pytest.mark.parametrize("family", ["bloom", "openai_gpt", "lfm2", "zamba2", "jamba"])
def test_packing_on_is_refused_with_the_reason(family: str) -> None:
    reason = "cannot be packed: (packed documents see each other|its .* would leak)"
    with pytest.raises(SoftshardsError, match=reason):
        student_of(family, packing="on")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "nemotron", "afmoe", "mpt"])
def test_what_can_be_packed_can_be_padded(family: str) -> None:
    assert student_of(family, packing="on").attention != "padded"
    assert student_of(family, packing="off").attention == "padded"


@pytest.mark.parametrize("family", ["doge", "cpmant", "deepseek_v32", "glm_moe_dsa"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_students_that_no_way_suits_are_refused(family: str, packing: Packing) -> None:
    with pytest.raises(SoftshardsError, match=r"a \w+, can be neither packed nor padded: "):
        student_of(family, packing=packing)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon_rw", "a Falcon with alibi"),
        ("qwen2_5_vl", "a qwen2_5_vl, which transformers does not load as a causal"),
        ("mistral3", "a mistral3, which transformers does not load as a causal"),
    ],
)
def test_configurations_that_are_refused(family: str, reason: str, tmp_path: Path) -> None:
    family_config(family).save_pretrained(tmp_path)
    for from_config in (False, True):
        with pytest.raises(SoftshardsError, match=reason):
            load_model(tmp_path, from_config=from_config)


def test_only_the_text_part_is_trained() -> None:
    model = student_of("gemma3_vision").model
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert trained == {"language_model"}
    assert frozen == {"multi_modal_projector", "vision_tower"}
