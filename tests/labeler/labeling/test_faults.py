"""Failures of a node in the middle of a run, through the command line with real vLLM."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from labeler.labelsets.verify.rescore import rescore_rows, teacher_path
from schemas import open_label_set, scan, validate_label_set
from schemas.journal import read_entries, read_rejects
from tests.fork_server import fork_server
from tests.labeler.conftest import Run
from tests.labeler.labeling.test_vllm import small
from tests.tiny_model import TEXT, make_model, make_tokenizer

pytestmark = pytest.mark.vllm


def run_with(fault: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    server = fork_server("tests.labeler.preload")
    return server.run("tests.labeler.faults", fault, *arguments)


def facts_of(out: Path) -> list[dict[str, str]]:
    manifest = open_label_set(out, allow_partial=True).manifest
    return [entry.provenance for entry in read_entries(out, manifest.planned_units)]


def test_a_full_disk_costs_only_the_current_unit(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    flags = small(teacher, tmp_path / "labels")
    failed = run_with("disk-full", "label", corpus, *flags)
    assert failed.returncode == 2
    assert "the disk is full: unit 1 could not be written" in failed.stderr
    assert "hint:" in failed.stderr
    finished = len(list((tmp_path / "labels").glob("journal/unit-*.json")))
    assert finished == 1
    again = run_labeler("label", corpus, *flags, "--json")
    assert json.loads(again.stdout)["units_reused"] == 1
    assert list(validate_label_set(open_label_set(tmp_path / "labels"))) == []


def test_out_of_memory_halves_the_step_and_continues(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    done = run_with(
        "out-of-memory", "label", corpus, *small(teacher, out), "--max-batched-tokens", 256
    )
    assert done.returncode == 0, done.stderr
    assert "ran out of memory with steps of 256 tokens: loading it again with 128" in done.stderr
    steps = [facts["settings"]["max_num_batched_tokens"] for facts in facts_of(out)]
    assert (steps[0], steps[-1]) == ("256", "128")
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    assert rescore_rows(
        labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
    ).good


def test_a_crashed_engine_is_an_error_and_the_same_command_resumes(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    flags = small(teacher, tmp_path / "labels")
    failed = run_with("engine-crash", "label", corpus, *flags)
    assert failed.returncode == 2
    assert "the engine failed: the engine core died unexpectedly" in failed.stderr
    assert "Traceback" not in failed.stderr
    summary = json.loads(run_labeler("label", corpus, *flags, "--json").stdout)
    assert summary["units_reused"] > 0
    assert summary["units_labeled"] > 0
    assert list(validate_label_set(open_label_set(tmp_path / "labels"))) == []


def test_a_row_with_missing_positions_is_a_reject(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    done = run_with("fewer-positions", "label", corpus, *small(teacher, out))
    assert done.returncode == 0, done.stderr
    reasons = read_rejects(out)["reason"].to_pylist()
    assert reasons
    assert all("positions, expected" in reason for reason in reasons)
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    assert rescore_rows(
        labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
    ).good


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("shifted-rows", "differ from the public interface's"), ("no-runner", "has no sampler")],
)
def test_tensors_that_fail_the_self_test_are_not_used(
    teacher: Path, corpus: Path, tmp_path: Path, fault: str, reason: str
) -> None:
    out = tmp_path / "labels"
    done = run_with(fault, "label", corpus, *small(teacher, out))
    assert done.returncode == 0, done.stderr
    assert "labels through vLLM's public interface" in done.stderr
    assert reason in done.stderr
    assert all(reason in facts["settings"]["capture"] for facts in facts_of(out))
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    assert rescore_rows(
        labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
    ).good
    assert scan(out).select(pl.col("entropy").null_count()).collect().item() == labels.rows


def test_rows_with_nan_logits_are_rejects_and_too_many_end_the_run(
    run_labeler: Run, tmp_path: Path
) -> None:
    """A teacher with one broken embedding: every position after that token is NaN."""
    path = tmp_path / "teacher"
    vocab_size = make_tokenizer(path)
    make_model(path, vocab_size=vocab_size, tie_word_embeddings=False)
    broken = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = torch.nan
    broken.save_pretrained(path)
    rows = [{"id": f"good{i}", "text": TEXT[i % 5]} for i in range(24)]
    bad = [{"id": f"bad{i}", "input_ids": [20, 21, 7, 22, 23]} for i in range(12)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows + bad))
    out = tmp_path / "labels"
    run_labeler("label", source, *small(path, out))
    rejects = read_rejects(out)
    assert set(rejects["id"].to_pylist()) == {row["id"] for row in bad}
    assert all("NaN" in reason for reason in rejects["reason"].to_pylist())
    labels = open_label_set(out)
    assert labels.rows == len(rows)
    assert list(validate_label_set(labels)) == []
    assert rescore_rows(
        labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
    ).good
    source.write_text("".join(json.dumps(row) + "\n" for row in bad))
    failed = run_labeler("label", source, *small(path, tmp_path / "none"), code=2)
    assert "more than --max-reject-share" in failed.stderr
    assert "NaN" in failed.stderr
