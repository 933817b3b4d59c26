"""Large students are checked on their first layers: with the same outcome, and without a trace."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from schemas import SoftshardsError
from tests.trainer.student.families import family_config
from trainer.student import packing_check
from trainer.student.layers import decoder_layers
from trainer.student.packing_check import part_of
from trainer.student.student import make_student

FAMILIES = (
    *("llama", "gemma2", "gemma3_text", "qwen2_sw", "olmo3", "smollm3", "nemotron", "afmoe", "opt"),
    *("gpt_oss", "deepseek_v3", "gemma4_text", "gemma3n_text", "gemma3_vision", "hrm_text", "doge"),
    *("lfm2", "jamba", "granitemoehybrid", "qwen3_next", "mamba2", "nemotron_h", "zamba", "bloom"),
)


def outcome(family: str) -> tuple[str, ...] | str:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(family_config(family))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.config.to_dict()
    try:
        student = make_student(model, 280)
    except SoftshardsError as error:
        return str(error).split("(")[0]
    after = student.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config.to_dict() == settings
    return student.attention, str(model.config._attn_implementation)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_decide_as_all(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome(family)
    monkeypatch.setattr(packing_check, "WHOLE_PARAMETERS", 0)
    assert outcome(family) == whole


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        ("llama", 2),
        ("qwen2_sw", 3),  # the first window is in the third layer
        ("gemma3_text", 6),  # the first layer without is the last
        ("deepseek_v3", 2),  # dense, then experts
        ("lfm2", 2),
        ("granitemoehybrid", 2),
        ("nemotron_h", 3),  # mamba, attention, experts
        ("gemma4_text", 4),  # it does not run without its other layers
        ("hrm_text", None),
    ],
)
def test_layers_kept(family: str, kept: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind, at least two."""
    monkeypatch.setattr(packing_check, "WHOLE_PARAMETERS", 0)
    student = make_student(AutoModelForCausalLM.from_config(family_config(family)), 280)
    count = len(decoder_layers(student.model))
    part = part_of(student, "eager")
    assert len(decoder_layers(part.model)) == (kept or count)
    assert len(decoder_layers(student.model)) == count
    ours, theirs = student.model.parameters(), {id(p) for p in part.model.parameters()}
    assert theirs <= {id(p) for p in ours}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2"])
def test_students_of_more_than_100_million_parameters(family: str) -> None:
    settings: PretrainedConfig = family_config(family, vocab_size=32000)
    settings.hidden_size, settings.intermediate_size = 1024, 4096
    settings.head_dim = 256
    torch.manual_seed(0)
    settings.num_hidden_layers = 12
    if getattr(settings, "layer_types", None):
        settings.layer_types = (settings.layer_types * 6)[:12]
    model = AutoModelForCausalLM.from_config(settings)
    assert sum(p.numel() for p in model.parameters()) > 150e6
    student = make_student(model, 32000)
    assert student.attention == {"llama": "documents", "gemma3_text": "positions"}.get(
        family, "padded"
    )
    assert len(decoder_layers(part_of(student, "eager").model)) < 12
