"""Sampling settings that no engine could follow are refused before one is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from schemas import SoftshardsError
from tests.labeler.command_line import CommandLine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 3}, "--samples 3 at temperature 0 would give equal generations"),
        ({"samples": 2, "temperature": -0.0}, "--samples 2 at temperature 0"),
        ({"samples": 0}, "--samples is 0"),
        ({"temperature": -1.0}, "--temperature is -1.0; it must be 0 or at least 0.01"),
        ({"temperature": math.nan}, "--temperature is nan"),
        ({"temperature": math.inf}, "--temperature is inf"),
        ({"temperature": 1e-6, "samples": 2}, "--temperature is 1e-06"),
        ({"temperature": 0.7, "top_p": 0.0}, "--top-p is 0"),
        ({"temperature": 0.7, "top_p": 1.1}, "--top-p must be from 0 to 1"),
        ({"temperature": 0.7, "top_p": math.nan}, "--top-p must be from 0 to 1"),
        ({"temperature": 0.7, "min_p": -0.1}, "--min-p must be from 0 to 1"),
        ({"temperature": 0.7, "min_p": math.nan}, "--min-p must be from 0 to 1"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"stop": ("END", "")}, "--stop is empty"),
        ({"kv_cache_gb": 0.0}, "--kv-cache-gb is 0.0"),
        ({"kv_cache_gb": math.nan}, "--kv-cache-gb is nan"),
    ],
)
def test_settings_that_cannot_be_followed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftshardsError) as caught:
        LabelConfig(model=Path("m"), out=Path("o"), mode="generate", **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"samples": 3, "temperature": 0.01},
        {"samples": 1, "temperature": 0.0, "top_p": 0.5},
        {"temperature": 2.5, "top_p": 1e-3, "min_p": 1.0},
        {"mode": "score", "samples": 3},  # has no meaning there
    ],
)
def test_settings_that_can(settings: dict[str, Any]) -> None:
    config = LabelConfig(model=Path("m"), out=Path("o"), **({"mode": "generate"} | settings))
    assert (config.sampling is None) == (config.mode == "score")


def test_greedy_samples_are_refused_before_anything_is_read(
    labeler: CommandLine, tmp_path: Path
) -> None:
    flags = ("--model", tmp_path / "gone", "--out", tmp_path / "out")
    refused = labeler("label", "gone.jsonl", *flags, "--mode", "generate", "--samples", 3)
    assert refused.code == 2
    assert "--samples 3 at temperature 0" in refused.err
    assert "hint: pass a --temperature" in refused.err
