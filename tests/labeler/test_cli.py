"""The command line: clear errors, exit codes, no tracebacks, JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.cli import app
from tests.labeler.command_line import CommandLine, Outcome


def flags(teacher: Path, out: Path) -> list[object]:
    small = ["--k", "8", "--max-length", "64", "--unit-labels", "300"]
    return ["--model", teacher, "--out", out, "--engine", "transformers", *small]


def assert_one_error(done: Outcome, message: str) -> None:
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err


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
    labeler: CommandLine,
    teacher: Path,
    tmp_path: Path,
    name: str,
    content: str | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = labeler("label", tmp_path / name, *flags(teacher, tmp_path / "out"))
    assert_one_error(done, message)
    assert name in done.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_model(labeler: CommandLine, teacher: Path, corpus: Path, tmp_path: Path) -> None:
    assert_one_error(
        labeler("label", corpus, *flags(tmp_path / "none", tmp_path / "out")),
        "not a model",
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    assert_one_error(
        labeler("label", corpus, *flags(tmp_path / "broken", tmp_path / "out")),
        "broken",
    )
    too_long = ["--model", teacher, "--out", tmp_path / "out", "--max-length", "512"]
    assert_one_error(labeler("label", corpus, *too_long), "context of 256 tokens")


@pytest.mark.slow
def test_label_inspect_verify(
    labeler: CommandLine, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {teacher}\nk: 4\nmax_length: 64\nengine: transformers\n")
    done = labeler("label", corpus, "--config", config, "--out", out, "--k", "8", "--json")
    summary = done.json
    assert summary["status"] == "complete"
    facts = labeler("inspect", out, "--json").json
    assert facts["k"] == 8  # the flag, not the file
    assert facts["rows"] == summary["rows"]
    assert 0 < facts["mean_coverage"] < 1
    row = labeler("inspect", out, "--row", "doc3", "--json").json
    assert row["id"] == "doc3"
    assert len(row["labels"][0]["top"]) == 5
    assert_one_error(labeler("inspect", out, "--row", "nobody"), "no row has this id")
    verified = labeler("verify", out, "--rescore", "2", "--json")
    assert verified.json["rescore"]["good"]

    shard = next((out / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    altered = labeler("verify", out)
    assert altered.code == 1
    assert "was altered" in altered.out
    assert shard.name in altered.out
    assert "Traceback" not in altered.err


def test_unknown_setting_in_the_file_is_refused(
    labeler: CommandLine, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"modle: {teacher}\n")
    done = labeler("label", corpus, "--config", config, *flags(teacher, tmp_path / "out"))
    assert done.code != 0
    assert "modle" in done.err + done.out


def test_dry_run_estimates_the_cost(
    labeler: CommandLine, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    done = labeler("label", corpus, *flags(teacher, tmp_path / "out"), "--dry-run", "--json")
    plan = done.json
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
