"""Flags that take whole numbers refuse fractions, on the command line and in YAML files."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from cyclopts import App

import labeler.cli
import trainer.cli
from schemas.errors import SoftshardsError
from schemas.whole_numbers import refuse_fractions
from trainer.sweep.flags import parse_settings
from trainer.train.train_config import TrainConfig

REQUIRED = ["--labels", "a", "--student", "b", "--out", "c"]
APPS = {"labeler": labeler.cli.app, "trainer": trainer.cli.app}


def parse(app: App, *tokens: str, how: object = refuse_fractions) -> object:
    """Return the settings that a command would get."""
    sources = app.config
    app.config = how
    try:
        _, bound, _ = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    finally:
        app.config = sources
    return bound.arguments.get("config")


def whole_number_flags() -> list[tuple[str, str, str]]:
    """Return each flag of each command that takes int, int | None or several ints."""
    found = []
    for name, app in APPS.items():
        for command in app:
            if command.startswith("-"):
                continue
            for argument in app[command].assemble_argument_collection():
                text = str(argument.hint).replace("<class 'int'>", "int")
                if text in ("int", "int | None") or text.startswith("tuple[int"):
                    found.append((name, command, argument.name))
    return found


FLAGS = whole_number_flags()


def test_every_command_with_whole_numbers_is_found() -> None:
    commands = {(name, command) for name, command, _ in FLAGS}
    assert {("trainer", "train"), ("trainer", "slice"), ("trainer", "evaluate")} <= commands
    assert {("labeler", "label"), ("labeler", "bench"), ("labeler", "view")} <= commands
    assert len(FLAGS) > 40


@pytest.mark.parametrize(("name", "command", "flag"), FLAGS, ids=lambda value: str(value))
def test_a_fraction_is_refused_by_the_name_of_the_flag(name: str, command: str, flag: str) -> None:
    with pytest.raises(SoftshardsError, match=f"{flag} is 1.5; it must be a whole number"):
        parse(APPS[name], command, flag, "1.5")


@pytest.mark.parametrize("value", ["1.5", "0.5", ".5", "-1.5", "1.0e-1", "2.000001", "1e17.5"])
def test_no_spelling_of_a_fraction_is_rounded(value: str) -> None:
    with pytest.raises(SoftshardsError, match=r"--seed is .*; it must be a whole number"):
        parse(trainer.cli.app, "train", *REQUIRED, "--seed", value)


@pytest.mark.parametrize("value", ["2", "2.0", "2.", "+2", "0x2", "2.0e0"])
def test_whole_numbers_are_taken_as_before(value: str) -> None:
    config = parse(trainer.cli.app, "train", *REQUIRED, "--epochs", value)
    assert isinstance(config, TrainConfig)
    assert config.epochs == 2
    assert type(config.epochs) is int


def test_a_number_too_large_for_a_float_is_not_taken_by_way_of_one() -> None:
    assert parse(trainer.cli.app, "train", *REQUIRED, "--seed", f"{2**60 + 1}").seed == 2**60 + 1  # type: ignore[attr-defined]
    with pytest.raises(SoftshardsError, match="--seed"):
        parse(trainer.cli.app, "train", *REQUIRED, "--seed", f"{2**60 + 1}.0")


def test_flags_that_take_fractions_still_do() -> None:
    flags = ["--lr", "0.5", "--warmup", "1.5", "--memory-gb", "2.5", "--betas", "0.5", "0.25"]
    config = parse(trainer.cli.app, "train", *REQUIRED, *flags)
    assert isinstance(config, TrainConfig)
    assert (config.lr, config.warmup, config.memory_gb) == (0.5, 1.5, 2.5)
    assert config.betas == (0.5, 0.25)


@pytest.mark.parametrize("value", ["1.5", "0.5", "true", "1e3", "'1.5'", ".nan", "[1, 2]"])
def test_yaml_is_read_as_strictly(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"labels: a\nstudent: b\nout: c\nsave_every: {value}\n")
    with pytest.raises(SystemExit) as stopped:
        trainer.cli.main(["train", "--config", str(file)])
    assert stopped.value.code != 0
    shown = capsys.readouterr()
    assert "save_every" in shown.out + shown.err or "--save-every" in shown.out + shown.err


def test_yaml_names_its_file_and_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("labels: a\nstudent: b\nout: c\nepochs: 1.5\n")
    with pytest.raises(SystemExit) as stopped:
        trainer.cli.main(["train", "--config", str(file)])
    assert stopped.value.code == 2
    message = "train.yaml: --epochs is 1.5; it must be a whole number"
    assert message in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("value", [1.5, "0.5", 2.25])
def test_a_sweep_names_the_trial_and_the_flag(value: object, tmp_path: Path) -> None:
    settings = {"labels": "a", "student": "b", "out": "c", "window": value}
    with pytest.raises(SoftshardsError, match=r"trial 3: --window is .*; it must be a whole"):
        parse_settings(TrainConfig, settings, "trial 3", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["flag", "yaml"])
def test_the_labeler_refuses_in_the_same_words(how: str, tmp_path: Path) -> None:
    file = tmp_path / "label.yaml"
    file.write_text(yaml.safe_dump({"k": 7.5}))
    flags = ["--k", "7.5"] if how == "flag" else ["--config", str(file)]
    arguments = ["label", "none.jsonl", "--model", "none", "--out", "none", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "labeler", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "--k is 7.5; it must be a whole number" in done.stderr.replace("\n", " ")


def test_every_whole_number_of_training_is_among_the_flags() -> None:
    annotated = {f.name for f in fields(TrainConfig) if re.search(r"\bint\b", str(f.type))}
    flags = {flag for name, command, flag in FLAGS if (name, command) == ("trainer", "train")}
    assert {f"--{name.replace('_', '-')}" for name in annotated} == flags
