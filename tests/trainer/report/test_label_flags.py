"""The command that made a label set, from its manifest."""

from __future__ import annotations

import dataclasses
import shlex

from schemas import Sampling, open_label_set
from tests.trainer.conftest import World
from trainer.report.label_flags import input_names, label_flags
from trainer.report.reproduction import _command


def test_all_that_the_manifest_knows_is_a_flag(world: World) -> None:
    labels = open_label_set(world.labels)
    identity = labels.manifest.identity.model_copy(
        update={
            "mode": "generate",
            "chat_template": "0" * 64,
            "head_dtype": "bfloat16",
            "sampling": Sampling(n=2, temperature=0.5, max_tokens=9, stop=("a b",), min_p=0.1),
            "rendering": {"student_drop": ["system", "tools"], "regenerate": True},
            "engine_args": {"hf_overrides": {"rope": 1}},
        }
    )
    plan = {
        "seed": 3,
        "deterministic": False,
        "text_column": "text",
        "id_column": "key",
        "roles": {"the_narrator": "user"},
        "inputs": {"my corpus.jsonl": "0" * 64},
    }
    provenance = {
        "teacher": "teacher",
        "plan": plan,
        "chat_template": {"text": None, "arguments": {"enable_thinking": False}},
    }
    manifest = labels.manifest.model_copy(update={"identity": identity, "provenance": provenance})
    labels = dataclasses.replace(labels, manifest=manifest)
    words = shlex.split(_command("labeler label", input_names(labels), label_flags(labels)))
    assert words[:5] == ["labeler", "label", "my corpus.jsonl", "--model", "teacher"]
    text = " ".join(words)
    for part in (
        *("--mode generate", "--head-dtype model", "--samples 2 --temperature 0.5"),
        *("--max-tokens 9", "--min-p 0.1", "--stop a b"),
        *("--student-drop system --student-drop tools", "--regenerate", "--seed 3"),
        *("--no-deterministic", "--id-column key", "--roles.the-narrator user"),
        *('--engine-arg.hf-overrides {"rope": 1}', "--template-kwargs.enable-thinking false"),
    ):
        assert f" {part}" in text, part
    assert not {"--text-column", "--raw-prompts", "--overlap", "--chat-template"} & {*words}
