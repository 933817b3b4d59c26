from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas import open_label_set
from schemas.verdicts import RowVerdict, write_verdicts
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set
from tests.trainer.conftest import World
from tests.trainer.running import exit_code
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.evaluate.results import EvaluationResults

pytest.importorskip("sacrebleu")


def answers(path: Path, model: Path, texts: list[str], vocab_size: int) -> Path:
    rows = [
        Row(
            id=f"p{i}",
            input_ids=[1, 2, 3, 4 + i, 4 + i, 4 + i, 4 + i, 4 + i],
            spans=[(2, 8, "answer")],
            prompt=f"question {i}",
            generation=text,
            finish_reason="length" if i == 0 else "stop",
        )
        for i, text in enumerate(texts)
    ]
    return build_label_set(path, model, rows, vocab_size=vocab_size, mode="generate")


@pytest.fixture(scope="module")
def sets(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Results of held-out labels, the teacher's answers, and a student's."""
    root = tmp_path_factory.mktemp("answers")
    measure_models(
        EvaluateConfig(labels=world.labels, model=(world.teacher,), out=root / "eval.json")
    )
    texts = ["one two", "three", "I am sorry, I cannot do that", "five"]
    teacher = answers(root / "teacher", world.teacher, texts, world.vocab_size)
    texts = ["one two", "four", "", "five", "six"]
    model = root / "model"
    make_tokenizer(model)
    make_model(model, vocab_size=world.vocab_size, seed=5)
    student = answers(root / "student", model, texts, world.vocab_size)
    return root / "eval.json", teacher, student


def command(world: World, out: Path, *more: object) -> list[str]:
    shared = ["evaluate", "--labels", world.labels, "--model", world.teacher, "--out", out]
    return list(map(str, [*shared, *more]))


def test_answers_are_compared_and_reused(
    world: World,
    sets: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured, teacher, student = sets
    out = tmp_path / "eval.json"
    out.write_bytes(measured.read_bytes())
    flags = ["--answers", student, "--reference", teacher]
    assert exit_code(command(world, out, *flags)) == 0
    shown = capsys.readouterr()
    assert f"answers: {student} (4 prompts)" in shown.out
    assert "exact match" in shown.out
    assert "0 prompts of the reference have no answer, 1 are new" in shown.out
    assert "passed the verifier" not in shown.out

    verdicts = []
    for labels, passed in ((teacher, [1, 1, 0, 1]), (student, [1, 0, 0, 1, 1])):
        path = tmp_path / f"{labels.name}.jsonl"
        rows = [RowVerdict(id=f"p{i}", passed=bool(p)) for i, p in enumerate(passed)]
        write_verdicts(path, open_label_set(labels).manifest.identity_digest, "f", rows)
        verdicts += ["--verdicts", path]
    assert exit_code(command(world, out, *flags, *verdicts, "--json")) == 0
    entries = json.loads(capsys.readouterr().out)["answers"]
    assert len(entries) == 2
    found = {name: figure["value"] for name, figure in entries[1]["student"].items()}
    assert found["exact"] == 0.5
    assert found["passed"] == 0.5
    assert found["empty"] == 0.25
    assert found["truncated"] == 0.25
    assert found["tokens"] == 6.0
    assert found["repetition"] > 0
    assert found["refusals"] == 0.0
    assert entries[1]["teacher"]["refusals"]["value"] == 0.25
    assert entries[1]["differences"]["passed"]["value"] == pytest.approx(-0.25)
    assert (entries[1]["missing"], entries[1]["surplus"]) == (0, 1)

    assert exit_code(command(world, out, *flags, *verdicts)) == 0
    shown = capsys.readouterr()
    assert f"{student}: reused" in shown.err
    assert "passed the verifier" in shown.out


def test_without_held_out_labels(
    world: World,
    sets: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers alone, then a held-out set beside them: nothing is compared twice."""
    _, teacher, student = sets
    out = tmp_path / "answers.json"
    alone = ["evaluate", "--answers", student, "--reference", teacher, "--out", out]
    assert exit_code([*map(str, alone), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["answers"][0]["prompts"] == 4
    assert shown.keys() == {"version", "tasks", "answers"}
    assert exit_code(["report", "--eval", str(out), "--out", str(tmp_path / "report.html")]) == 2
    assert "of tasks and answers alone, without a held-out label set" in capsys.readouterr().err
    assert exit_code([*map(str, alone), "--labels", str(world.labels)]) == 2
    assert "--model is missing" in capsys.readouterr().err
    assert exit_code(command(world, out, *alone[1:5])) == 0
    assert f"{student}: reused" in capsys.readouterr().err
    assert len(EvaluationResults.open(out).models) == 1
    assert exit_code([*map(str, alone)]) == 0  # and the held-out set stays
    assert len(EvaluationResults.open(out).models) == 1
    assert exit_code(["evaluate", "--model", str(world.student), "--out", str(out)]) == 2
    assert "nothing to measure on" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(
    world: World,
    sets: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured, teacher, student = sets
    out = tmp_path / "eval.json"
    out.write_bytes(measured.read_bytes())
    stranger = tmp_path / "v.jsonl"
    write_verdicts(stranger, "abc", "f", [])
    cases = {
        "--answers needs --reference": ["--answers", student],
        "has no generation": ["--answers", world.labels, "--reference", teacher],
        "judges none of the label sets": (
            ["--answers", student, "--reference", teacher, "--verdicts", stranger]
        ),
        "not a regular expression": (
            ["--answers", student, "--reference", teacher, "--refusal-pattern", "("]
        ),
    }
    for reason, flags in cases.items():
        assert exit_code(command(world, out, *flags)) == 2
        assert reason in capsys.readouterr().err
    assert out.read_bytes() == measured.read_bytes()
