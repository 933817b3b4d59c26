from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas import SoftshardsError
from tests.trainer.build_label_set import build_label_set, random_rows, teacher_logprobs
from tests.trainer.conftest import World
from tests.trainer.test_calibration import reference_ece
from trainer.config import EvaluateConfig
from trainer.evaluate import evaluate


def test_metrics_equal_a_dense_float64_reference(world: World, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    models = (world.student, world.teacher)
    assert (
        evaluate(EvaluateConfig(labels=world.labels, model=models, out=out, teacher=world.teacher))
        == 0
    )
    results = json.loads(out.read_text())
    teacher, student = (
        LlamaForCausalLM.from_pretrained(path).double().eval()
        for path in (world.teacher, world.student)
    )
    sums: dict[str, list[float]] = {}
    certainty: dict[str, list[tuple[float, bool]]] = {}
    for row in world.rows:
        t, s = (teacher_logprobs(m, row.input_ids, world.vocab_size) for m in (teacher, student))
        for start, stop, kind in row.spans:
            for at in range(start, stop):
                p, q, token = t[at - 1], s[at - 1], row.input_ids[at]
                ids = p.topk(8).indices
                rest = torch.ones_like(p, dtype=torch.bool)
                rest[ids] = False
                tail = p[rest].logsumexp(0)
                kl = (p[ids].exp() * (p[ids] - q[ids])).sum()
                kl += tail.exp() * (tail - q[rest].logsumexp(0))
                values = [1.0, -float(q[token]), float(kl), float(p.argmax() == q.argmax())]
                values.append(-float(p[token]))
                for name in ("all", kind):
                    known = sums.setdefault(name, [0.0] * 5)
                    sums[name] = [a + b for a, b in zip(known, values)]
                    top = (float(q.max().exp()), int(q.argmax()) == token)
                    certainty.setdefault(name, []).append(top)
    found = results["models"][0]
    assert set(found["kinds"]) == {"text", "thinking", "answer"}
    for name, (count, ce, kl_sum, agreement, teacher_ce) in sums.items():
        metrics = found["all"] if name == "all" else found["kinds"][name]
        assert metrics["labels"] == count
        assert metrics["ce"] == pytest.approx(ce / count, abs=1e-5)
        assert metrics["ppl"] == pytest.approx(math.exp(ce / count), rel=1e-4)
        assert metrics["kl"] == pytest.approx(kl_sum / count, abs=1e-4)  # labels are float16
        assert metrics["agreement"] == pytest.approx(agreement / count, abs=1e-9)
        assert metrics["teacher_ce"] == pytest.approx(teacher_ce / count, rel=2**-11)  # float16
        confidence, correct = map(np.array, zip(*certainty[name]))
        assert metrics["ece"] == pytest.approx(reference_ece(confidence, correct), abs=1e-5)
    itself = results["models"][1]["all"]
    assert itself["kl"] < 1e-5
    assert itself["agreement"] == 1.0
    assert results["teacher"]["ce"] == pytest.approx(itself["ce"], abs=2e-4)
    assert results["teacher"]["parameters"] == results["models"][1]["parameters"]
    weights = (world.student / "model.safetensors").stat().st_size
    assert found["bytes"] == weights
    assert found["parameters"] == sum(p.numel() for p in student.parameters())
    assert found["non_embedding"] == found["parameters"] - 64 * (world.vocab_size + 20)


def test_second_run_reuses_and_prints_json(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(
        labels=world.labels, model=(world.student,), out=tmp_path / "eval.json", json=True
    )
    evaluate(config)
    first = capsys.readouterr()
    evaluate(config)
    second = capsys.readouterr()
    assert json.loads(first.out) == json.loads(second.out)
    assert "reused" in second.err
    assert "reused" not in first.err


def test_results_of_another_label_set_are_not_mixed(world: World, tmp_path: Path) -> None:
    other = build_label_set(
        tmp_path / "other", world.teacher, random_rows(4, world.vocab_size, seed=5),
        vocab_size=world.vocab_size,
    )  # fmt: skip
    out = tmp_path / "eval.json"
    evaluate(EvaluateConfig(labels=world.labels, model=(world.student,), out=out))
    with pytest.raises(SoftshardsError, match="another label set"):
        evaluate(EvaluateConfig(labels=other, model=(world.student,), out=out))


def test_results_of_an_older_version_are_refused(world: World, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    config = EvaluateConfig(labels=world.labels, model=(world.student,), out=out)
    evaluate(config)
    out.write_text(json.dumps(json.loads(out.read_text()) | {"version": 1}))
    with pytest.raises(SoftshardsError, match="version 1, this softshards writes 2"):
        evaluate(config)


def test_wrong_teacher_is_refused(world: World, tmp_path: Path) -> None:
    config = EvaluateConfig(
        labels=world.labels, model=(), out=tmp_path / "eval.json", teacher=world.student
    )
    with pytest.raises(SoftshardsError, match="the labels were made by"):
        evaluate(config)
