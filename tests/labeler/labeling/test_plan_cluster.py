"""`labeler plan-cluster`: a small run predicts a larger one; the arithmetic by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.planning.cluster_plan import Calibration, Machines, plan_run
from labeler.labeling.runs.label_run import label
from schemas import open_label_set
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Settings
from tests.tiny_model import TEXT

CALIBRATION = Calibration(
    engine="vllm on H100",
    tokens_per_s=1000.0,
    labels_per_token=0.5,
    bytes_per_label=200.0,
    labels_per_unit=50_000,
)


def plan(tokens: int, **machines: Any) -> Any:
    given = {"nodes": None, "hours": None} | machines
    return plan_run(CALIBRATION, Machines(**given), tokens=tokens, labels=tokens // 2)


def test_the_arithmetic() -> None:
    """36 million tokens at 1,000 per second are 10 hours of one teacher, and 3.6 GB."""
    one = plan(36_000_000)
    assert (one.nodes, one.hours, one.engine_hours, one.bytes) == (1, 10.0, 10.0, 3_600_000_000)
    assert (one.units, one.write_bytes_per_s, one.bottleneck) == (360, 100_000.0, "compute")
    many = plan(36_000_000, nodes=5, engines_per_node=2, store_bytes_per_s=2e6)
    assert (many.engines, many.hours, many.engine_hours) == (10, 1.0, 10.0)
    assert (many.store_hours, many.nodes_that_help) == (0.5, 10)
    assert many.bottleneck == "compute"


def test_the_store_and_the_disk_are_limits() -> None:
    slow = plan(36_000_000, nodes=5, engines_per_node=2, store_bytes_per_s=0.5e6)
    assert (slow.hours, slow.engine_hours, slow.bottleneck) == (2.0, 20.0, "store")
    assert (slow.nodes_that_help, slow.fits) == (2, True)
    full = plan(36_000_000, disk_bytes=3_599_999_999)
    assert (full.bottleneck, full.fits) == ("disk", False)
    assert plan(36_000_000, disk_bytes=3_600_000_000).fits


def test_nodes_follow_from_the_hours() -> None:
    assert plan(36_000_000, hours=2.5).nodes == 4
    assert plan(36_000_000, hours=2.4, engines_per_node=2).nodes == 3
    late = plan(36_000_000, hours=1.0, store_bytes_per_s=0.5e6)
    assert (late.nodes, late.hours, late.bottleneck, late.fits) == (10, 2.0, "store", False)


def write_corpus(path: Path, documents: range) -> str:
    """Write documents that differ."""
    rows = [{"id": f"d{i}", "text": f"{i} " + " ".join(TEXT[i % 5 :])} for i in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_a_small_run_predicts_a_larger_one(
    settings: Settings, labeler: CommandLine, tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    label([write_corpus(tmp_path / "a.jsonl", range(60))], settings(out=small))
    label([write_corpus(tmp_path / "b.jsonl", range(60, 360))], settings(out=large))
    target = open_label_set(large)
    whole = json.loads(labeler("plan-cluster", small, "--like", large, "--json").out)
    stored = sum(
        file.stat().st_size
        for folder in ("shards", "index", "journal")
        for file in (large / folder).iterdir()
    )
    stored += (large / "plan.parquet").stat().st_size
    found = whole["plan"]
    assert (found["tokens"], found["labels"]) == (target.tokens, target.labels)
    assert found["bytes"] == pytest.approx(stored, rel=0.04)
    assert found["units"] == pytest.approx(len(target.shards), rel=0.15)
    ledger = json.loads((small / "ledger.json").read_text())["engines"]
    (cost,) = ledger.values()
    hours = target.tokens / (cost["tokens"] / cost["engine_seconds"]) / 3600
    assert found["hours"] == pytest.approx(hours, rel=1e-6)
    assert whole["measured"]["engine"] == next(iter(ledger))
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\ndevices:\n  cpu: {per_hour: 2}\n  gpu: {per_hour: 9}\n")
    more = ["--tokens", "1e9", "--tokens-per-s", 1000, "--nodes", 4, "--prices", prices]
    text = labeler("plan-cluster", small, *more)
    assert "1,000.0 tokens/s per teacher (--tokens-per-s)" in text.out
    assert "cost        555.56 EUR" in text.out  # 1e6 s at 2 per hour
    assert "bottleneck  compute" in text.out
    full = labeler("plan-cluster", small, "--tokens", "1e9", "--disk-gb", 1)
    assert (full.code, "do not fit in 1.0 GB" in full.out) == (1, True)
    refuse(labeler, small, tmp_path)


def refuse(labeler: CommandLine, labels: Path, tmp_path: Path) -> None:
    """Check what is refused, on a set that is there."""
    view = tmp_path / "v.view.json"
    assert labeler("curate", labels, "--out", view, "--where", "n_labels > 1").code == 0
    derived = tmp_path / "derived"
    shutil.copytree(labels, derived)
    (derived / "ledger.json").unlink()
    (tmp_path / "other.json").write_text("{}")
    for arguments, what in (
        ([view, "--tokens", 9], "nothing was measured here"),
        ([derived, "--tokens", 9], "nothing was measured here"),
        ([labels], "the size of the corpus is missing"),
        ([labels, "--tokens", 9, "--like", labels], "exclude each other"),
        ([labels, "--tokens", 9, "--nodes", 1, "--hours", 1], "exclude each other"),
        ([labels, "--tokens", -1], "--tokens is -1"),
        ([labels, "--like", tmp_path / "other.json"], "not the output of"),
        ([labels, "--like", tmp_path / "nowhere"], "nowhere"),
    ):
        done = labeler("plan-cluster", *arguments)
        assert (done.code, what in " ".join(done.err.split())) == (2, True), (arguments, done)
