"""Real vLLM on the tiny teacher: against the reference engine, and killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.verification import rescore_rows
from schemas import open_label_set, scan, validate_label_set
from tests.labeler.test_run import shard_bytes
from tests.tiny_model import TEXT

pytestmark = pytest.mark.vllm
Run = Callable[..., subprocess.CompletedProcess[str]]


def small(teacher: Path, out: Path, *more: object) -> list[object]:
    flags = ["--k", "8", "--max-length", "64", "--unit-labels", "300", "--max-sequences", "8"]
    return ["--model", teacher, "--out", out, *flags, *more]


def test_set_up_leaves_no_torchvision_that_cannot_be_imported() -> None:
    """With a broken one installed, vLLM loads no model: scripts/setup removes it."""
    code = "import importlib.util as u\nif u.find_spec('torchvision'): import torchvision"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_labels_equal_the_reference(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    done = run_labeler("label", corpus, *small(teacher, tmp_path / "vllm"))
    assert done.returncode == 0, done.stderr
    labels = open_label_set(tmp_path / "vllm")
    assert list(validate_label_set(labels)) == []
    assert labels.labels > 512
    result = rescore_rows(labels, labels.rows, None, tolerance=1e-3, seed=0)
    assert result.good, result.verdict
    assert result.positions == labels.labels
    again = run_labeler("label", corpus, *small(teacher, tmp_path / "vllm"), "--json")
    assert json.loads(again.stdout)["units_labeled"] == 0


def test_generations_are_labeled_like_scored_text(
    run_labeler: Run, teacher: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXT))
    sampled = ["--mode", "generate", "--max-tokens", "12", "--temperature", "1.3", "--top-p", "0.9"]
    more = [*sampled, "--samples", "2"]
    done = run_labeler("label", prompts, *small(teacher, tmp_path / "out", *more))
    assert done.returncode == 0, done.stderr
    labels = open_label_set(tmp_path / "out")
    assert list(validate_label_set(labels)) == []
    frame = scan(tmp_path / "out").collect()
    assert frame.height == 2 * len(TEXT)
    assert frame["generation"].n_unique() > len(TEXT)
    assert set(frame["spans"].list.get(0).struct.field("kind")) == {"answer"}
    result = rescore_rows(labels, labels.rows, None, tolerance=1e-3, seed=0)
    assert result.good, result.verdict


def kill_after_first_unit(command: list[str], out: Path) -> None:
    """Start a run, wait until a unit is journaled, and kill it -9 a moment later."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(out.glob("journal/unit-*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_kill_9_then_the_same_command_gives_the_same_bytes(
    run_labeler: Run, teacher: Path, tmp_path: Path, mode: str
) -> None:
    source = tmp_path / "in.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": " ".join(TEXT * 2), "prompt": TEXT[i % 5] + str(i)} for i in range(60)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--mode", mode, "--max-tokens", "16", "--temperature", "1.0"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_labeler("label", source, *small(teacher, whole, *more))
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "labeler", "label", str(source)]
    command += map(str, small(teacher, killed, *more))
    kill_after_first_unit(command, killed)
    finished = len(list(killed.glob("journal/unit-*.json")))
    resumed = run_labeler("label", source, *small(teacher, killed, *more), "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert summary["units_reused"] >= finished > 0
    assert summary["units_labeled"] > 0, "the run was over before it was killed"
    assert shard_bytes(killed) == shard_bytes(whole)
    assert list(validate_label_set(open_label_set(killed))) == []
