"""Refuse a checkpoint whose tensors are not those of its config.json.

transformers fills what is missing with random numbers and leaves out what is too much.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from schemas.errors import SoftshardsError

SHOWN = 4
BUFFERS = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias)$")
"""Constants that older checkpoints store: models compute them."""


def check_weights_loaded(model: PreTrainedModel, loaded: dict[str, Any], path: Path) -> None:
    """Check that the weights came from the checkpoint, all of them. A tied head is not missing.

    Args:
        model: as loaded, with `ignore_mismatched_sizes`.
        loaded: transformers' `output_loading_info`.
        path: the checkpoint, for the message.

    Raises:
        SoftshardsError: names the tensors that are missing, of another shape, or without a place.
    """
    shapes = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in sorted(loaded["mismatched_keys"])
    ]
    missing = sorted(set(loaded["missing_keys"]))
    unused = sorted(name for name in loaded["unexpected_keys"] if _belongs_to(model, name))
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("the checkpoint lacks weights", missing),
            ("weights have other shapes than config.json says", shapes),
            ("config.json has no place for weights", unused),
        )
        if names
    ]
    if problems:
        raise SoftshardsError(
            "; ".join(problems),
            path=path,
            hint="copy the checkpoint again (all *.safetensors, their index, config.json); "
            "--from-config trains random weights",
        )


def _belongs_to(model: PreTrainedModel, name: str) -> bool:
    """Return True if a tensor lies inside a part that the model has, as a bias or a layer more.

    What stands beside the language model (a vision tower, a value head) may be left out.
    """
    if BUFFERS.search(name):
        return False
    parts = name.split(".")
    ancestors = {".".join(parts[:count]) for count in range(1, len(parts))}
    outer = {"", model.base_model_prefix, f"{model.base_model_prefix}.language_model"}
    return any(known in ancestors for known, _ in model.named_modules() if known not in outer)


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
