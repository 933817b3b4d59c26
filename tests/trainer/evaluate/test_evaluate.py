from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from schemas import IdentityError, LabelSetError, SoftshardsError, decode, open_label_set
from schemas.fingerprint import weights_digest
from tests.tiny_model import make_tokenizer
from tests.trainer.build_label_set import build_label_set, random_rows, teacher_logprobs
from tests.trainer.conftest import World
from tests.trainer.evaluate.test_calibration import reference_ece
from tests.trainer.running import exit_code
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import evaluate
from trainer.evaluate.results import EvaluationResults
from trainer.evaluate.teacher_facts import is_the_teacher
from trainer.report.build_report import report
from trainer.report.report_config import ReportConfig
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_teacher import slice_teacher


@pytest.mark.slow
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
    tokenizer = Tokenizer.from_file(str(world.teacher / "tokenizer.json"))
    eos = tokenizer.token_to_id("<eos>")
    # Tokens that are whole characters; the tiny vocabulary's other ones are single bytes.
    whole = [i for i in range(world.vocab_size) if "\ufffd" not in tokenizer.decode([i])]
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
                gone = q[ids].exp() * (q[ids] - p[ids])
                reverse = gone.sum() + q[rest].logsumexp(0).exp() * (q[rest].logsumexp(0) - tail)
                values = [1.0, -float(q[token]), float(kl), float(p.argmax() == q.argmax())]
                values.append(-float(p[token]))
                accepted = float(torch.minimum(p[ids], q[ids]).exp().sum())
                tails = float(torch.minimum(tail, q[rest].logsumexp(0)).exp())
                common = set(ids.tolist()) & set(q.topk(8).indices.tolist())
                values += [accepted, accepted + tails, len(common) / 8]
                values.append(float(reverse))
                size = len(tokenizer.decode([token]).encode()) if token in whole else 1
                size = 0 if token == eos else size
                values += [size, -float(q[token]) if size else 0.0]
                for name in ("all", kind):
                    known = sums.setdefault(name, [0.0] * len(values))
                    sums[name] = [a + b for a, b in zip(known, values)]
                    top = (float(q.max().exp()), int(q.argmax()) == token)
                    certainty.setdefault(name, []).append(top)
    found = results["models"][0]
    kinds = {group["value"]: group["metrics"] for group in found["by"]["kind"]}
    assert set(kinds) == {"text", "thinking", "answer"}
    for name, of_part in sums.items():
        count, ce, kl_sum, agreement, teacher_ce, accepted, upper, *rest = of_part
        overlap, reversed_kl, size, text_ce = rest
        metrics = found["all"] if name == "all" else kinds[name]
        assert metrics["labels"] == count
        assert metrics["ce"] == pytest.approx(ce / count, abs=1e-5)
        assert metrics["ppl"] == pytest.approx(math.exp(ce / count), rel=1e-4)
        assert metrics["kl"] == pytest.approx(kl_sum / count, abs=1e-4)  # labels are float16
        assert metrics["reverse_kl"] == pytest.approx(reversed_kl / count, abs=1e-3)
        assert metrics["agreement"] == pytest.approx(agreement / count, abs=1e-9)
        assert metrics["acceptance"] == pytest.approx(accepted / count, rel=2**-10)  # float16
        assert metrics["acceptance_upper"] == pytest.approx(upper / count, rel=2**-9)
        assert metrics["overlap"] == pytest.approx(overlap / count, abs=1e-9)
        assert metrics["bytes"] == size
        assert metrics["bits_per_byte"] == pytest.approx(text_ce / size / math.log(2), abs=1e-5)
        assert metrics["teacher_ce"] == pytest.approx(teacher_ce / count, rel=2**-11)  # float16
        confidence, correct = map(np.array, zip(*certainty[name]))
        assert metrics["accuracy"] == pytest.approx(correct.mean())
        assert metrics["ece"] == pytest.approx(reference_ece(confidence, correct), abs=1e-5)
    itself = results["models"][1]["all"]
    assert itself["kl"] < 1e-5
    assert itself["agreement"] == 1.0
    for name in ("bits_per_byte", "ece"):
        assert results["teacher"][name] == pytest.approx(itself[name], abs=2e-3)  # float16
    assert itself["overlap"] == 1.0
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


def test_results_of_different_label_sets_never_mix(world: World, tmp_path: Path) -> None:
    other = build_label_set(
        tmp_path / "other", world.teacher, random_rows(4, world.vocab_size, seed=5),
        vocab_size=world.vocab_size,
    )  # fmt: skip
    out = tmp_path / "eval.json"
    evaluate(EvaluateConfig(labels=world.labels, model=(world.student,), out=out))
    with pytest.raises(SoftshardsError, match="a different label set"):
        evaluate(EvaluateConfig(labels=other, model=(world.student,), out=out))


def test_results_of_an_older_version_are_refused(world: World, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    config = EvaluateConfig(labels=world.labels, model=(world.student,), out=out)
    evaluate(config)
    out.write_text(json.dumps(json.loads(out.read_text()) | {"version": 1}))
    with pytest.raises(SoftshardsError, match="version 1, this softshards writes 3"):
        evaluate(config)


def test_wrong_teacher_is_refused(world: World, tmp_path: Path) -> None:
    config = EvaluateConfig(
        labels=world.labels, model=(), out=tmp_path / "eval.json", teacher=world.student
    )
    with pytest.raises(SoftshardsError, match="not the checkpoint that made the labels"):
        evaluate(config)


def test_the_table_also_shows_models_measured_before(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["evaluate", "--labels", str(world.labels), "--out", str(tmp_path / "eval.json")]
    flags += ["--model", str(world.student), "--model", str(world.teacher)]
    tables = []
    for _ in range(2):
        assert exit_code(flags) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    results = json.loads((tmp_path / "eval.json").read_text())
    for model in results["models"]:
        found = model["all"]
        for text in (f"{found['ppl']:,.2f}", f"{found['kl']:.4f}", f"{found['ece']:.1%}"):
            assert text in tables[0]
    assert f"{results['teacher']['ppl']:,.2f}" in tables[0]
    assert "ECE: how far" in tables[0]


def stating(world: World, path: Path, **identity: Any) -> Path:
    """Build a small label set whose identity says something else about its teacher."""
    rows = random_rows(8, world.vocab_size)
    return build_label_set(path, world.teacher, rows, vocab_size=world.vocab_size, **identity)


@pytest.mark.parametrize("scope", ["stated", "served"])
def test_a_teacher_known_by_name_only_is_accepted_with_a_warning(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], scope: str
) -> None:
    """There is no digest of files to compare: only the tokenizer can be checked."""
    labels = stating(world, tmp_path / "set", weights="0" * 64, weights_scope=scope)
    settings: dict[str, Any] = {"labels": labels, "model": (world.teacher,)}
    settings["out"] = tmp_path / "eval.json"
    assert evaluate(EvaluateConfig(**settings, teacher=world.teacher)) == 0
    assert f"warning: the label set's teacher is {scope}" in capsys.readouterr().err
    teacher = json.loads((tmp_path / "eval.json").read_text())["teacher"]
    assert teacher["proved"] is False
    assert teacher["parameters"] > 0
    out = tmp_path / "report.html"
    baseline = (f"same={world.teacher}",)
    report(ReportConfig(eval=tmp_path / "eval.json", baseline=baseline, out=out))
    assert "nothing proves which checkpoint it was" in out.read_text()
    other = tmp_path / "other"
    shutil.copytree(world.teacher, other)
    make_tokenizer(other, vocab_size=280, text=["zebras quiz foxy jumps over lazy dogs"])
    with pytest.raises(IdentityError, match="tokenizer is not the teacher's"):
        evaluate(EvaluateConfig(**settings, teacher=other))
    sliced = {"teacher": world.teacher, "labels": labels, "out": tmp_path / "s", "layers": "0"}
    slice_teacher(SliceConfig(**sliced))
    assert (
        json.loads((tmp_path / "s" / "slice.json").read_text())["from_the_labels_teacher"] is None
    )


def test_a_teacher_known_by_its_headers(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = weights_digest(world.teacher, full=False)
    labels = stating(world, tmp_path / "set", weights=digest, weights_scope="header")
    settings: dict[str, Any] = {"labels": labels, "model": (), "out": tmp_path / "eval.json"}
    evaluate(EvaluateConfig(**settings, teacher=world.teacher))
    assert "warning" not in capsys.readouterr().err
    assert is_the_teacher(world.teacher, open_label_set(labels).manifest.identity)
    assert not is_the_teacher(world.student, open_label_set(labels).manifest.identity)
    with pytest.raises(SoftshardsError, match="not the checkpoint that made the labels"):
        evaluate(EvaluateConfig(**settings, teacher=world.student))


def test_unknown_tokens_of_an_import_make_the_teachers_perplexity_a_bound(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their log-probabilities are the largest possible ones (docs/interchange.md)."""
    labels = stating(world, tmp_path / "set", rendering={"imported": "distillkit"})
    out = tmp_path / "eval.json"
    evaluate(EvaluateConfig(labels=labels, model=(world.student,), out=out))
    teacher = json.loads(out.read_text())["teacher"]
    assert teacher["lower_bound"]
    assert f"≥{teacher['ppl']:,.2f}" in capsys.readouterr().out
    baseline = (f"untrained={world.student}",)
    report(ReportConfig(eval=out, baseline=baseline, out=tmp_path / "report.html"))
    assert "it is at least that" in (tmp_path / "report.html").read_text()
    plain = {"labels": world.labels, "out": tmp_path / "plain.json"}
    evaluate(EvaluateConfig(**plain, model=(world.student,)))
    assert not json.loads((tmp_path / "plain.json").read_text())["teacher"]["lower_bound"]


def test_a_set_without_labels_is_refused(world: World, tmp_path: Path) -> None:
    labels = build_label_set(tmp_path / "empty", world.teacher, [], vocab_size=world.vocab_size)
    out = tmp_path / "eval.json"
    with pytest.raises(LabelSetError, match="holds no labels"):
        evaluate(EvaluateConfig(labels=labels, model=(world.student,), out=out))
    assert not out.exists()


def test_figures_of_sampled_labels_are_weighted_and_say_so(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are 1, 2, 3, 4, 1, ... in each row; the teacher is measured against itself."""
    labels = build_label_set(
        tmp_path / "set", world.teacher, random_rows(6, world.vocab_size, seed=3),
        vocab_size=world.vocab_size, keep_positions="sample 0.2",
    )  # fmt: skip
    out, total, weights = tmp_path / "eval.json", 0.0, 0.0
    config = EvaluateConfig(labels=labels, model=(world.teacher,), out=out)
    for _ in range(2):
        assert evaluate(config) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "estimates from the labels that --keep-positions 'sample 0.2' drew" in said
    assert "reused" in said
    opened = open_label_set(labels)
    for group in opened.row_groups:
        table = opened.read_row_group(group)
        stored = decode(table).labels.token_logprob.astype(float)
        weight = np.concatenate([1.0 + np.arange(n) % 4 for n in table["n_labels"].to_pylist()])
        total, weights = total - float(weight @ stored), weights + weight.sum()
    results = EvaluationResults.open(out)
    assert results.teacher.ce == pytest.approx(total / weights)
    assert sum(bin.labels for bin in results.teacher.calibration) == weights
    assert results.models[0].all.labels == weights
    assert results.models[0].all.ce == pytest.approx(total / weights, rel=1e-3)
    page = tmp_path / "report.html"
    report(ReportConfig(eval=out, baseline=(f"same={world.teacher}",), out=page))
    assert "The figures are estimates from the labels that --keep-positions" in page.read_text()
