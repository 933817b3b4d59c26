"""A round from prompts to the next student, killed on the way; real commands, tiny models."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from schemas import open_label_set
from tests.fork_server import fork_server
from tests.tiny_model import TEXT
from tests.trainer.conftest import World
from trainer.rounds.command_steps import Step
from trainer.rounds.run_steps import StepStopped, run_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]
LABELER = {"engine": "transformers", "max_length": 64}
SECONDS = 900
VERIFIER = f'{sys.executable} -c \'import json, sys; sys.exit(json.load(sys.stdin)["id"] == "3")\''


def command(file: Path, out: Path, *more: str) -> list[str]:
    return ["trainer", "rounds", str(file), "--out", str(out), *more]


def keys(path: Path) -> list[str]:
    labels = open_label_set(path)
    groups = (labels.read_row_group(group, ["id"]) for group in labels.row_groups)
    return sorted(key for group in groups for key in group["id"].to_pylist())


def signaled(words: list[str], line: str, number: signal.Signals, log: Path) -> int:
    """Run a command, signal it once it has written the start of a line; return its exit code."""
    with log.open("w") as stderr:
        process = fork_server("tests.trainer.preload").start(*words, stderr=stderr)
    while f"\n{line}" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait()


@pytest.fixture
def settings(world: World, tmp_path: Path) -> dict[str, object]:
    prompts = [{"prompt": " ".join(text.split()[:4]) + f" {i}"} for i in range(2) for text in TEXT]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    return {
        "teacher": str(world.teacher),
        "student": str(world.student),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "rounds": 1,
        "prompts_per_round": 6,
        "held_out": 3,
        "ids": 4,
        "mix": {str(world.labels): 0.25},
        "generate": {**LABELER, "max_tokens": 12},
        "score": {**LABELER, "k": 8, "row_group_labels": 16},
        "filter": {"max_repetition": 0.95, "verify_command": VERIFIER},
        "train": {"pack_tokens": 128, "packs_per_step": 1, "lr": 1e-3},
    }


def test_a_filter_that_leaves_nothing_ends_the_rounds(
    settings: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "rounds.yaml"
    file.write_text(json.dumps(settings | {"filter": {"verify_command": "false"}}))
    server = fork_server("tests.trainer.preload")
    done = server.run(*command(file, tmp_path / "out", "--json"), timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stopped"] == "0 rounds: the filter left no answer of round 0"
    (only,) = found["rounds"]
    assert (only["answers"], only["kept"], only["trained"]) == (6, 0, False)
    assert only["kl"] > 0
    file.write_text(json.dumps(settings | {"filter": {"verify_command": "no-such-program"}}))
    refused = server.run(*command(file, tmp_path / "out"), timeout=SECONDS)
    assert refused.returncode == 2
    assert "no such program" in refused.stderr


def test_another_refusal_of_the_filter_is_no_empty_filter(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    view = tmp_path / "kept.view.json"
    (tmp_path / "taken").write_text("a file, no folder")
    filtering = Step(
        name="filter",
        program="labeler",
        arguments=("curate", str(world.labels), "--out", str(view)),
        flags={"materialize": str(tmp_path / "taken")},
        output=view,
        may_select_nothing=True,
    )
    with pytest.raises(StepStopped) as stopped:
        run_step(filtering, Path(sys.executable))
    assert stopped.value.code == 2
    assert "taken" in capfd.readouterr().err


def test_a_round_that_is_killed_goes_on_to_the_next_student(
    settings: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "rounds.yaml"
    file.write_text(json.dumps(settings))
    out, log = tmp_path / "out", tmp_path / "log"
    server = fork_server("tests.trainer.preload")
    killed = signaled(command(file, out), "== score", signal.SIGKILL, log)
    assert killed == -signal.SIGKILL
    answers = (out / "round-0" / "answers" / "manifest.json").read_bytes()
    interrupted = signaled(command(file, out), "== measure", signal.SIGINT, log)
    assert interrupted == 128 + signal.SIGINT
    assert "interrupted; the same `trainer rounds` resumes" in log.read_text()
    done = server.run(*command(file, out, "--json"), timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "== generate: labeler label" in done.stderr  # of the last student
    assert (out / "round-0" / "answers" / "manifest.json").read_bytes() == answers
    found = json.loads(done.stdout)
    first, last = found["rounds"]
    assert (first["answers"], first["trained"], last["answers"]) == (6, True, 0)
    asked = [json.loads(x)["id"] for x in (out / "prompts/round-0.jsonl").read_text().splitlines()]
    learned = {key.split("/")[0] for key in keys(out / "round-0" / "train-labels.view.json")}
    assert "3" in asked
    assert "3" not in learned
    assert last["student"] == str(out / "round-0" / "train" / "final")
    assert found["best"] in (first["student"], last["student"])
    assert found["stopped"] == "1 rounds"
    assert min(first["kl"], first["reverse_kl"], last["kl"], last["reverse_kl"]) > 0
    labels = open_label_set(out / "round-0" / "labels")
    assert len(set(keys(out / "round-0" / "labels"))) == labels.rows == first["kept"] + 3
    assert set(keys(out / "round-0" / "labels")) <= set(keys(out / "round-0" / "answers"))
    held_out = [key for key in keys(out / "last-1" / "labels") if key.startswith("held-out/")]
    assert len(held_out) == 3
    identity = labels.manifest.identity
    assert (identity.ids_from, identity.weights) == ("topk_ids:4", first["teacher_weights"])
    parents = labels.manifest.provenance["parents"]
    assert {parent["weights"] for parent in parents} == {first["student_weights"]}
    again = server.run(*command(file, out))
    assert again.returncode == 0
    assert "==" not in again.stderr  # no command runs
    assert "* 0" in again.stdout or "* 1" in again.stdout
    file.write_text(json.dumps(settings | {"seed": 7}))
    refused = server.run(*command(file, out))
    assert refused.returncode == 2
    assert "made with other settings" in refused.stderr
