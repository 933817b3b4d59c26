"""Whole runs with the reference engine: resume, refusals, rejects. With vLLM: test_vllm.py."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import filelock
import polars as pl
import pytest

import labeler.labeling.runs.label_units
from labeler.labeling.runs.label_dry_run import dry_run
from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, open_label_set, scan, validate_label_set
from schemas.journal import read_rejects
from tests.labeler.conftest import Settings


def shard_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def test_a_run_makes_a_valid_label_set(corpus: Path, settings: Settings) -> None:
    config = settings()
    summary = label([str(corpus)], config)
    labels = open_label_set(config.out)
    assert list(validate_label_set(labels)) == []
    assert (summary.rows, summary.labels) == (labels.rows, labels.labels)
    assert len(labels.shards) > 2
    assert len(labels.row_groups) > len(labels.shards)
    frame = pl.scan_parquet(config.out / "shards" / "*.parquet").collect()
    assert frame["id"].n_unique() == 24
    assert frame["topk_ids"].list.len().to_list() == frame["n_labels"].to_list()
    assert scan(config.out).collect().equals(frame)


def test_a_finished_set_is_not_touched(corpus: Path, settings: Settings) -> None:
    config = settings()
    label([str(corpus)], config)
    before = {p: p.stat().st_mtime_ns for p in config.out.rglob("*") if ".lock" not in p.name}
    summary = label([str(corpus)], config)
    assert (summary.units_labeled, summary.units_reused) == (0, len(shard_bytes(config.out)))
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_missing_or_truncated_shard_is_labeled_again_byte_for_byte(
    corpus: Path, settings: Settings
) -> None:
    config = settings()
    label([str(corpus)], config)
    whole = shard_bytes(config.out)
    first, second, *_ = sorted((config.out / "shards").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-40])
    summary = label([str(corpus)], config)
    assert summary.units_labeled == 2
    assert shard_bytes(config.out) == whole
    assert list(validate_label_set(open_label_set(config.out))) == []


def test_disk_full_loses_no_finished_unit(
    corpus: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    write, calls = labeler.labeling.runs.label_units.write_unit, [0]

    def write_twice_then_fail(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(labeler.labeling.runs.label_units, "write_unit", write_twice_then_fail)
    with pytest.raises(SoftshardsError, match="disk is full"):
        label([str(corpus)], config)
    with pytest.raises(SoftshardsError, match="not finished"):
        open_label_set(config.out)
    partial = open_label_set(config.out, allow_partial=True)
    assert len(partial.shards) == 2
    assert list(validate_label_set(partial)) == []
    monkeypatch.setattr(labeler.labeling.runs.label_units, "write_unit", write)
    assert label([str(corpus)], config).units_reused == 2


@pytest.mark.parametrize(
    ("name", "message"), [("plan.parquet", "the plan"), ("ledger.json", "index and manifest")]
)
def test_a_full_disk_at_either_end_is_one_clear_error(
    corpus: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    config = settings()
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SoftshardsError, match=f"the disk is full: {message}"):
            label([str(corpus)], config)
    assert not list(config.out.rglob(".tmp-*"))
    assert label([str(corpus)], config).status == "complete"


def test_changed_settings_are_refused_field_by_field(corpus: Path, settings: Settings) -> None:
    label([str(corpus)], settings())
    with pytest.raises(SoftshardsError) as caught:
        label([str(corpus)], settings(k=4, overlap=0))
    assert "k: here 8, asked 4" in str(caught.value)
    assert "overlap: here 1, asked 0" in str(caught.value)
    with pytest.raises(SoftshardsError, match="seed: here 0, asked 3"):
        label([str(corpus)], settings(seed=3))
    corpus.write_text(corpus.read_text() + '{"text": "more and more"}\n')
    with pytest.raises(SoftshardsError, match="inputs: here"):
        label([str(corpus)], settings())


def test_limit_takes_the_first_records_of_all_inputs(
    tmp_path: Path, corpus: Path, settings: Settings
) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "one more about the cat"}) + "\n" * 3)
    config = settings(limit=3)
    label([str(corpus), str(more)], config)
    assert set(scan(config.out).collect()["id"]) == {"doc0", "doc1", "doc2"}
    with pytest.raises(SoftshardsError, match="limit: here 3, asked 4"):
        label([str(corpus), str(more)], settings(limit=4))


@pytest.mark.local("a store has no temporary files")
def test_files_of_a_killed_planner_are_removed(corpus: Path, settings: Settings) -> None:
    config = settings()
    (config.out / "shards").mkdir(parents=True)
    left = [".tmp-plan.sqlite", ".tmp-0123-plan.parquet", "shards/.tmp-0123-part-000000.parquet"]
    for name in left:
        (config.out / name).write_bytes(b"half")
    label([str(corpus)], config)
    assert list(validate_label_set(open_label_set(config.out))) == []
    assert not list(config.out.rglob(".tmp-*"))


def test_a_resumed_run_uses_the_recorded_step(
    corpus: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps may round otherwise; only --max-batched-tokens overrides the recorded one."""
    steps = []
    load = labeler.labeling.runs.label_units.load_engine

    def watched(*args: Any, batched_tokens: int) -> Any:
        steps.append(batched_tokens)
        return load(*args, batched_tokens=batched_tokens)

    monkeypatch.setattr(labeler.labeling.runs.label_units, "load_engine", watched)
    config = settings(max_batched_tokens=512)
    label([str(corpus)], config)
    for again in (settings(), settings(max_batched_tokens=128)):
        next((config.out / "shards").iterdir()).unlink()
        label([str(corpus)], again)
    assert steps == [512, 512, 128]


def test_bad_records_are_rejects_with_their_id(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "mixed.jsonl"
    good = [json.dumps({"text": "the cat sat on the mat"})] * 4
    path.write_text("\n".join([*good, '{"text":', json.dumps({"text": 3}), ""]))
    config = settings()
    assert label([str(path)], config).rejects == 2
    rejects = {r["id"]: r["reason"] for r in read_rejects(config.out).to_pylist()}
    assert set(rejects) == {"mixed.jsonl:4", "mixed.jsonl:5"}
    assert open_label_set(config.out).rows == 4
    with pytest.raises(SoftshardsError, match="line 5 is not JSON"):
        label([str(path)], settings(strict=True, out=tmp_path / "strict"))
    with pytest.raises(SoftshardsError, match="more than --max-reject-share"):
        label([str(path)], settings(max_reject_share=0.1, out=tmp_path / "share"))


def test_generation_keeps_text_and_finish_reason(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"cat {i}"}) + "\n" for i in range(3)))
    config = settings(mode="generate", max_tokens=10, samples=2, temperature=1.0)
    label([str(path)], config)
    assert list(validate_label_set(open_label_set(config.out))) == []
    frame = scan(config.out).sort("id", "sample").collect()
    assert frame.select("id", "sample").rows() == [
        (f"prompts.jsonl:{i}", s) for i in range(3) for s in range(2)
    ]
    assert set(frame["finish_reason"]) <= {"stop", "length"}
    assert frame["generation"].null_count() == 0
    assert frame["generation"][0] != frame["generation"][1]


def test_dry_run_writes_nothing(corpus: Path, settings: Settings) -> None:
    config = settings()
    result = dry_run([str(corpus)], config)
    assert not config.out.exists()
    assert result.planned.rows >= 24
    assert result.bytes > 0
    assert result.timing.seconds > 0
    label([str(corpus)], config)
    assert result.planned.n_labels == open_label_set(config.out).labels


@pytest.mark.local("a store has leases in place of file locks: test_store_runs.py")
def test_two_processes_do_not_write_one_set(corpus: Path, settings: Settings) -> None:
    config = settings()
    config.out.mkdir()
    with (
        filelock.FileLock(config.out / ".lock-0-of-1"),
        pytest.raises(SoftshardsError, match="another process"),
    ):
        label([str(corpus)], config)
