"""Label sets to view: a corpus that tries to take over the page, by two teachers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs import label_run as run
from tests.tiny_model import CHAT_TEMPLATE, make_tokenizer

SCRIPT = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
HOSTILE = [
    {"id": SCRIPT, "text": f"{SCRIPT} <b>bold</b> &amp; {{{{ script }}}}"},
    {
        "id": "signs\u202e",
        "text": "bell \x07 tab\tend\r\nreversed \u202e and \u2028 a line\n\n  two",
    },
    {"id": "whole", "text": "a parrot \U0001f99c, naïve 日本 and more of the same text here"},
    {"id": "huge", "text": "x" * 3000},
]


def label_hostile_corpus(folder: Path, teacher: Path) -> dict[str, Path]:
    """Label a hostile corpus, `<b>.jsonl`, with two teachers, and with one in compact/1."""
    other = folder / "other-teacher"
    make_tokenizer(other, chat_template=CHAT_TEMPLATE)
    model = LlamaForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight += 0.03 * noise
    model.save_pretrained(other)
    plain_rows = [{"id": f"doc{i}", "text": "the cat sat " * (i + 2)} for i in range(12)]
    corpus = folder / "<b>.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in [*HOSTILE, *plain_rows]))
    made = {"corpus": corpus}
    for name, model, codec in (
        ("a", teacher, "plain"),
        ("b", other, "plain"),
        ("compact", teacher, "compact"),
    ):
        made[name] = folder / name
        run.label(
            [str(corpus)],
            LabelConfig(
                model=model,
                out=made[name],
                engine="transformers",
                k=16,
                max_length=128,
                unit_labels=400,
                row_group_labels=128,
                codec=codec,
            ),
        )
    return made
