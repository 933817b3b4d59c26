"""`--student OWNER/NAME`: students and teachers from the stand-in Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from schemas import SoftshardsError
from tests.labeler.hub import Hub
from tests.model_hub import contents, downloads, models, publish
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_teacher import slice_teacher
from trainer.sweep.grid import read_sweep
from trainer.sweep.run_sweep import sweep
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import write_settings
from trainer.train.loop import train
from trainer.train.run_record import find_finished, locate_student, open_inputs

__all__ = ["models"]

NAME = "lab/student"


@pytest.fixture
def commits(models: Hub, world: World, tmp_path: Path) -> list[str]:
    """Publish the student, and a later state of it with other weights."""
    size = make_tokenizer(tmp_path / "later")
    make_model(tmp_path / "later", vocab_size=size + 20, layers=1, seed=9)
    return publish(models, NAME, contents(world.student), contents(tmp_path / "later"))


def test_training_starts_from_the_commit_and_keeps_it(
    world: World, commits: list[str], tmp_path: Path
) -> None:
    named = config(world, tmp_path / "hub", student=Path(NAME), revision=commits[0], max_steps=2)
    assert train(named) == 0
    assert train(config(world, tmp_path / "local", max_steps=2)) == 0
    result, local = (
        json.loads((tmp_path / name / "result.json").read_bytes()) for name in ("hub", "local")
    )
    assert result["facts"] == local["facts"]
    assert result["final"] == local["final"]
    assert (result["config"]["student"], result["config"]["revision"]) == (NAME, commits[0])
    assert local["config"]["student"] == str(world.student)
    assert not (tmp_path / "local" / "student.json").exists()
    later = config(world, tmp_path / "hub", student=Path(NAME), max_steps=2)
    assert find_finished(open_inputs(later)) is not None  # main is another one
    other = config(world, tmp_path / "hub", student=Path(f"{NAME}@{commits[1]}"), max_steps=2)
    with pytest.raises(SoftshardsError, match=r"config\.student"):
        find_finished(open_inputs(other))


def test_dry_run_and_random_weights_download_none(
    world: World,
    commits: list[str],
    tmp_path: Path,
    models: Hub,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = config(world, tmp_path / "x", student=Path(NAME), dry_run=True)
    assert train(asked) == 0
    assert f"{NAME}@{commits[1]}: " in capsys.readouterr().err
    student = open_inputs(config(world, tmp_path / "x", student=Path(NAME), from_config=True))
    assert student.config.student.name == commits[1]
    assert "model.safetensors" not in downloads(models)


@pytest.mark.usefixtures("commits")
def test_offline(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(world, tmp_path / "x", student=Path(NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SoftshardsError, match="unset HF_HUB_OFFLINE"):
        open_inputs(asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = open_inputs(asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_inputs(asked).student == found.student


def test_evaluate_names_each_commit(world: World, commits: list[str], tmp_path: Path) -> None:
    given = (Path(f"{NAME}@{commits[0]}"), Path(NAME), world.student)
    asked = EvaluateConfig(labels=world.labels, model=given, out=tmp_path / "eval.json")
    results, rows = measure_models(asked)
    places = [f"{NAME}@{commits[0]}", str(world.student)]
    assert [entry.paths for entry in results.models] == [places, [f"{NAME}@{commits[1]}"]]
    assert [model for model, _ in rows] == list(given)


def test_slice_names_its_commit(world: World, models: Hub, tmp_path: Path) -> None:
    (commit,) = publish(models, "lab/big", contents(world.teacher))
    out = tmp_path / "sliced"
    asked = SliceConfig(teacher=Path("lab/big"), labels=world.labels, out=out, layers="0")
    assert slice_teacher(asked) == 0
    written = json.loads((out / "slice.json").read_bytes())
    assert written["source"] == {"name": "lab/big", "commit": commit}
    assert slice_teacher(asked) == 0


def test_a_sweep_pins_the_commit(
    world: World, commits: list[str], tmp_path: Path, models: Hub
) -> None:
    base = {"labels": str(world.labels), "eval_labels": str(world.labels), "student": NAME}
    students = tmp_path / "students.yaml"
    students.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [0, 1]}}))
    asked = read_sweep(students, tmp_path / "out")
    for trial in asked.trials:
        source = locate_student(trial.config, dry_run=True)
        written = yaml.safe_load(write_settings(trial, source).read_text())
        assert (written["student"], written["revision"]) == (NAME, commits[1])
    config = SweepConfig(out=tmp_path / "out", dry_run=True)
    assert sweep(students, config) == 0
    assert "model.safetensors" not in downloads(models)


@pytest.mark.parametrize(
    ("student", "hint"),
    [
        ("lab/studnet", "check the name"),
        (f"https://huggingface.co/{NAME}", f"give its name: {NAME}"),
        (f"{NAME}@none", "check --revision"),
        ("no-such-folder", "OWNER/NAME of a model on the Hub"),
    ],
)
@pytest.mark.usefixtures("commits")
def test_wrong_names(world: World, tmp_path: Path, student: str, hint: str) -> None:
    with pytest.raises(SoftshardsError, match=hint):
        _ = open_inputs(config(world, tmp_path / "x", student=Path(student))).facts
