"""The command line: what it reuses, and what it refuses. Nothing here needs the extra."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas import open_label_set
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from trainer.audit.audit_results import AuditResults, Share
from trainer.audit.continuations import Speaker
from trainer.cli import main


def silent(done: int) -> None:
    assert done > 0


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def flags(world: World, out: Path, *more: object, labels: Path | None = None) -> list[object]:
    sizes = ["--prefix", 4, "--continuation", 6, "--ngram", 3, "--rows", 8, "--scan-rows", 0]
    return ["--labels", labels or world.labels, "--out", out, *sizes, *more]


def test_a_model_extracts_its_own_continuations(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that are a model's own continuations are extracted by it, from whatever position."""

    rows = random_rows(6, world.vocab_size, seed=3, shortest=4, longest=4)
    speaker = Speaker(world.student, open_label_set(world.labels), "fp32")
    given = [np.array(row.input_ids, np.int32) for row in rows]
    for row, said in zip(rows, speaker.continue_greedily(given, [6] * 6, silent)):
        row.input_ids += said.tolist()
        row.spans = [(4, 10, "answer")]
    labels = build_label_set(tmp_path / "set", world.teacher, rows, vocab_size=world.vocab_size)
    out = tmp_path / "audit.json"
    more = ["--model", world.student, "--control", world.teacher]
    assert run(*flags(world, out, *more, labels=labels)) == 0
    results = AuditResults.open(out)
    model, control = results.models
    assert results.eligible == 6
    assert model.memorization.extracted == Share(found=6, of=6)
    assert model.memorization.near_verbatim.found == 6
    assert model.memorization.matched == model.memorization.overlap == 6
    assert model.memorization.copied == 1.0
    assert control.memorization.extracted.found < 6
    assert model.leaks is None
    assert model.canaries is None
    captured = capsys.readouterr()
    assert "6 (100.0%)" in captured.out
    assert f"labeler curate {labels} --out {tmp_path}/audit.view.json" in captured.err
    assert Path(results.rules[0]).read_text().count("row0") == 6


def test_a_second_run_reuses_and_prints_json(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    first = flags(world, out, "--model", world.student, "--json")
    assert run(*first) == 0
    printed = capsys.readouterr()
    assert "reused" not in printed.err
    assert run(*first, "--model", world.teacher) == 0
    again = capsys.readouterr()
    assert f"{world.student}: reused" in again.err
    before, after = json.loads(printed.out), json.loads(again.out)
    assert before["models"] == after["models"][:1]
    assert [model["paths"] for model in after["models"]] == [
        [str(world.student)],
        [str(world.teacher)],
    ]
    assert json.loads(out.read_text()) == after


def test_other_settings_and_other_sets_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    assert run(*flags(world, out, "--model", world.student)) == 0
    assert run(*flags(world, out, "--model", world.student, "--seed", 1)) == 2
    assert "made with another seed: 0, not 1" in capsys.readouterr().err
    rows = random_rows(8, world.vocab_size, seed=9)
    other = build_label_set(tmp_path / "other", world.teacher, rows, vocab_size=world.vocab_size)
    assert run(*flags(world, out, "--model", world.student, labels=other)) == 2
    assert "of a different label set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--teacher", "STUDENT"], "not the checkpoint that made the labels"),
        (["--model", "NOWHERE"], "no model here"),
        (["--prefix", "60"], "no row has 60 tokens before 6 labeled ones"),
        (["--out", "FOLDER"], "--out is a folder"),
        (["--out", "/proc/nowhere/audit.json"], "/proc/nowhere"),
        (["--rows", "0"], "--rows is 0: it must be at least 1"),
        (["--ngram", "7"], "--ngram 7 is longer than --continuation 6"),
        (["--pii-score", "2"], "must be from 0 to 1"),
        (["--canaries", "NOWHERE"], "cannot be read"),
    ],
)
def test_refusals(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    what: str,
) -> None:
    places = {
        "FOLDER": str(tmp_path),
        "STUDENT": str(world.student),
        "NOWHERE": str(tmp_path / "nowhere"),
    }
    given = [places.get(word, word) for word in more]
    base = flags(world, tmp_path / "audit.json", "--model", world.teacher)
    at = [i for i, word in enumerate(base) if word == more[0] and more[0] != "--model"]
    for i in at:
        del base[i : i + 2]
    assert run(*base, *given) == 2
    assert what in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "audit.json").exists()


def test_without_the_extra_its_name_is_given(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("presidio_analyzer", "detect_secrets"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("personal_patterns", "secret_patterns"):
        monkeypatch.delitem(sys.modules, f"trainer.audit.{name}", raising=False)
    given = flags(world, tmp_path / "audit.json", "--model", world.student, "--scan-rows", 5)
    at = given.index("--scan-rows")
    del given[at : at + 2]
    assert run(*given) == 2
    message = capsys.readouterr().err
    assert "softshards[audit]" in message
    assert "--scan-rows 0" in message


def test_a_damaged_file_is_not_overwritten(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    out.write_text('{"version": 9}')
    assert run(*flags(world, out, "--model", world.student)) == 2
    assert "version 9, this softshards writes 1" in capsys.readouterr().err
    out.write_text("{}")
    assert run(*flags(world, out, "--model", world.student)) == 2
    assert out.read_text() == "{}"


def test_a_set_of_a_view_and_a_moved_model(world: World, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(world.student, moved)
    out = tmp_path / "audit.json"
    assert run(*flags(world, out, "--model", world.student)) == 0
    assert run(*flags(world, out, "--model", moved)) == 0
    (model,) = AuditResults.open(out).models
    assert model.paths == [str(world.student), str(moved)]
