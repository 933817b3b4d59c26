"""The command line: clear errors, exit codes, no tracebacks, JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from labeler.cli import app
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Run


def flags(teacher: Path, out: Path) -> list[object]:
    small = ["--k", "8", "--max-length", "64", "--unit-labels", "300"]
    return ["--model", teacher, "--out", out, "--engine", "transformers", *small]


def assert_one_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "no such file"),
        ("empty.jsonl", "", "nothing to label"),
        ("bad.jsonl", "{]\n", "line 1 is not JSON"),
        ("short.txt", "", "0 tokens"),
        ("picture.png", "x", "cannot read this kind of file"),
    ],
)
def test_bad_input(
    run_labeler: Run, teacher: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run_labeler("label", tmp_path / name, *flags(teacher, tmp_path / "out"), code=2)
    assert_one_error(done, message)
    assert name in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_model(run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path) -> None:
    assert_one_error(
        run_labeler("label", corpus, *flags(tmp_path / "none", tmp_path / "out"), code=2),
        "not a model",
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    assert_one_error(
        run_labeler("label", corpus, *flags(tmp_path / "broken", tmp_path / "out"), code=2),
        "broken",
    )
    too_long = ["--model", teacher, "--out", tmp_path / "out", "--max-length", "512"]
    assert_one_error(run_labeler("label", corpus, *too_long, code=2), "context of 256 tokens")


@pytest.mark.slow
def test_label_inspect_verify(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {teacher}\nk: 4\nmax_length: 64\nengine: transformers\n")
    done = run_labeler("label", corpus, "--config", config, "--out", out, "--k", "8", "--json")
    summary = json.loads(done.stdout)
    assert summary["status"] == "complete"
    facts = json.loads(run_labeler("inspect", out, "--json").stdout)
    assert facts["k"] == 8  # the flag, not the file
    assert facts["rows"] == summary["rows"]
    assert 0 < facts["mean_coverage"] < 1
    row = json.loads(run_labeler("inspect", out, "--row", "doc3", "--json").stdout)
    assert row["id"] == "doc3"
    assert len(row["labels"][0]["top"]) == 5
    assert "no row has this id" in run_labeler("inspect", out, "--row", "nobody", code=2).stderr
    verified = run_labeler("verify", out, "--rescore", "2", "--json")
    assert json.loads(verified.stdout)["rescore"]["good"]

    shard = next((out / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    altered = run_labeler("verify", out, code=1)
    assert "was altered" in altered.stdout
    assert shard.name in altered.stdout
    assert "Traceback" not in altered.stderr


def test_unknown_setting_in_the_file_is_refused(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"modle: {teacher}\n")
    asked = ("label", corpus, "--config", config, *flags(teacher, tmp_path / "out"))
    done = run_labeler(*asked, code=None)
    assert done.returncode != 0
    assert "modle" in done.stderr + done.stdout


def test_dry_run_estimates_the_cost(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    done = run_labeler("label", corpus, *flags(teacher, tmp_path / "out"), "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["rows"] >= 24
    assert plan["estimated_bytes"] > 8 * plan["labels"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_each_help_has_an_example(labeler: CommandLine) -> None:
    """The help of every command, and the help of `labeler` itself."""
    for command in ("", *(name for name in app if not name.startswith("-"))):
        done = labeler(*command.split(), "--help")
        assert done.code == 0
        assert f"Example: labeler {command}" in done.out.replace("WANDB_MODE=offline ", ""), command
