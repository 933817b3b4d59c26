"""The student's own context, and weights by kind of span, through a whole training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainer.build_label_set import Row, build_label_set
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.train.loop import train

ANSWER = [7, 8, 6, 11, 12]


def test_a_step_sees_the_students_context_and_weighs_by_kind(world: World, tmp_path: Path) -> None:
    """The teacher saw 4 more tokens; thinking counts a quarter."""
    row = Row(
        id="hidden",
        input_ids=[21, 22, 23, 24, 5, *ANSWER],
        spans=[(5, 7, "thinking"), (7, 10, "answer")],
        student_input_ids=[5, *ANSWER],
        student_spans=[(1, 3, "thinking"), (3, 6, "answer")],
    )
    labels = build_label_set(
        tmp_path / "set", world.teacher, [row], vocab_size=world.vocab_size, k=world.vocab_size
    )
    weights = ("thinking=0.25", "answer=1")
    run = config(world, tmp_path / "run", labels=labels, kind_weight=weights, epochs=1)
    train(run)
    logp = {}
    for name, path, ids, first in (
        ("student", world.student, row.student_input_ids, 0),
        ("teacher", world.teacher, row.input_ids, 4),
    ):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(path)(torch.tensor([ids])).logits[0]
        logp[name] = logits[first : first + 5, : world.vocab_size].double().log_softmax(-1)
    ce = -logp["student"][range(5), ANSWER]
    kl = (logp["teacher"].exp() * (logp["teacher"] - logp["student"])).sum(1)
    count = torch.tensor([0.25, 0.25, 1, 1, 1])
    (line,) = log(tmp_path / "run")
    assert (line["tokens"], line["labels"]) == (6, 5)
    assert line["ce"] == pytest.approx(ce.mean().item(), rel=1e-5)
    assert line["kl"] == pytest.approx(kl.mean().item(), rel=5e-3)  # labels are float16
    expected = (count * (kl + ce)).sum() / count.sum()
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-3)
    assert line["loss"] != pytest.approx((kl + ce).mean().item(), rel=1e-3)
