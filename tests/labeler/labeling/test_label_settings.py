"""The marks of the settings: what a label set records is what decides its labels or its plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import Part, recorded_settings
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labeling.teacher.teacher_identity import local_weights, teacher_identity
from tests.labeler.chat_templates import STYLES
from tests.labeler.conftest import Settings

PARTS: tuple[Part, ...] = (
    *("identity", "rendering", "sampling", "chat_template", "engine_args", "weights", "plan"),
)
OTHER: dict[str, Any] = {
    "append": True,
    "append_eos": True,
    "capture": "public",
    "chat_prompts": True,
    "codec": "compact",
    "deterministic": False,
    "drop_columns": ("a",),
    "dtype": "bfloat16",
    "engine_arg": {"rope-theta": "1"},
    "head_dtype": "model",
    "id_column": "name",
    "ids_from": "mine:3",
    "keep_positions": "top-share 0.2",
    "kv_cache_gb": 1.0,
    "label_temperatures": (2.0,),
    "limit": 5,
    "max_batched_tokens": 64,
    "min_p": 0.1,
    "quantization": "fp8",
    "raw_prompts": True,
    "regenerate": True,
    "roles": {"narrator": "user"},
    "shape": "text",
    "spans": "turns",
    "stop": ("x",),
    "strict": True,
    "structured": {"regex": "a"},
    "student_drop": ("system",),
    "temperature": 0.5,
    "template_kwargs": {"a": "1"},
    "thinking": True,
    "too_long": "reject",
    "weights_digest": "header",
}
"""A value other than the default, where adding to it does not give one."""
TOGETHER = {
    "rank": {"world_size": 2},
    "min_k": {"top_p_labels": 0.5},
    "head_dtype": {"dtype": "bfloat16"},
    "samples": {"temperature": 0.5},
}
"""Settings that matter only beside others."""
ELSEWHERE = (
    *("model", "revision", "out", "mode", "engine"),
    *("server_url", "server_api", "served_model", "states"),
)
"""Settings that take another teacher, server or form of input to change."""


def changed(config: LabelConfig, name: str, other: dict[str, Any]) -> LabelConfig:
    value = getattr(config, name)
    if name in other:
        value = other[name]
    elif isinstance(value, str):
        value += "_2"
    elif isinstance(value, int):
        value += 1
    else:
        value /= 2
    return dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_a_setting_changes_the_identity_if_it_is_marked(
    settings: Settings, tmp_path: Path, mode: str
) -> None:
    """Every setting in turn: the marks of its field agree with the identity and the plan."""
    template = tmp_path / "template.jinja"
    template.write_text(STYLES["chatml"].template)
    path = settings().model
    teachers = {
        file: open_teacher(path, max_length=8, chat_template=file) for file in (None, template)
    }

    def identity(config: LabelConfig) -> str:
        weights = local_weights(path, config.weights_digest)
        return teacher_identity(teachers[config.chat_template], config, weights).digest

    for name in (field.name for field in dataclasses.fields(LabelConfig)):
        if name in ELSEWHERE or (name == "ids_from" and mode == "generate"):
            continue
        before = settings(mode=mode, max_tokens=4, **TOGETHER.get(name, {}))
        after = changed(before, name, OTHER | {"chat_template": template})
        marks = {part for part in PARTS if name in recorded_settings(after, part)}
        if mode == "score":
            marks -= {"sampling"}
        elif name == "overlap":
            marks -= {"identity"}
        assert (identity(before) == identity(after)) == (not marks - {"plan"}), name
        plans = [recorded_settings(config, "plan") for config in (before, after)]
        assert (plans[0] != plans[1]) == ("plan" in marks), name
