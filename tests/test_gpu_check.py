"""scripts/gpu-check refuses where there is no GPU; its benchmarks run on a CPU, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_it_refuses_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "gpu-check", "--trainer-only", "--json", tmp_path / "found.json"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == gpu_check.NO_GPU + "\n"
    assert done.stdout == ""
    assert not (tmp_path / "found.json").exists()


def test_its_tests_are_those_marked_gpu() -> None:
    """A test marked `gpu` in a file of another name would never run."""
    marked = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__)
        and any(word in path.read_text() for word in ("mark.gpu", "tests.trainer.devices"))
    ]
    assert sorted(marked) == gpu_check.TRAINER_TESTS
    assert len(marked) == 5
    assert all(path.is_file() for path in gpu_check.LABELER_TESTS)


@pytest.mark.usefixtures("quick_children")
@pytest.mark.slow
def test_the_benchmarks_run_on_a_cpu_and_fill_the_table() -> None:
    found = {
        name: {"exit_code": 0, "result": json.loads(run(name).splitlines()[-1])}
        for name in ("op_time", "student_step")
    }
    for part in found.values():
        assert all(row["seconds"] > 0 for row in part["result"]["rows"])
        for row in part["result"]["rows"]:
            row["bytes"] = 2**30  # measured on a GPU alone
    head = {"card": "Card", "date": "2026-01-01", "torch": "2", "transformers": "5"}
    tests = {"exit_code": 0, "passed": 3, "failed": 0, "skipped": 1, "seconds": 2.5}
    text = gpu_check.table(head | found | {"trainer_tests": tests})
    assert text.startswith("Card, 2026-01-01, torch 2, transformers 5\n")
    assert "| the trainer's tests: 3 passed, 0 failed, 1 skipped | 2.5 s | |" in text
    assert "| head of 4,096 x 64, 256 labels, fp32: materialized | " in text
    assert "bf16: labels | " in text
    assert text.count("| 1,024 MiB |") == sum(len(p["result"]["rows"]) for p in found.values())


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_failed_is_not_passed() -> None:
    tests = {"exit_code": 0, "passed": 3, "failed": 0, "skipped": 0}
    assert gpu_check.passed(tests)
    assert gpu_check.passed("a card")
    assert not gpu_check.passed(tests | {"passed": 0})
    assert not gpu_check.passed({"exit_code": 1, "result": None})
