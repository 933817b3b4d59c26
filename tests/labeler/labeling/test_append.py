"""`--append`: more records become more units; a kill leaves the old set or the new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import labeler.labeling.runs.label_units
from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, open_label_set, scan, validate_label_set
from schemas.journal import read_rejects
from schemas.manifest import read_manifest
from schemas.plan import open_plan
from tests.fork_server import fork_server
from tests.labeler.conftest import Settings
from tests.labeler.labeling.test_run import shard_bytes


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """8 new documents, 4 from the corpus, a bad one, and one with the id of another document."""
    rows: list[dict[str, Any]] = [{"id": f"new{i}", "text": f"cat {i} ran " * 9} for i in range(8)]
    first = (tmp_path / "corpus.jsonl").read_text().splitlines()[:4]
    rows += [{"id": "bad", "text": 3}, {"id": "doc9", "text": "not the text of the other doc9"}]
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join([*first, *map(json.dumps, rows)]))
    return path


def files_of(out: Path) -> dict[str, bytes]:
    """The files that do not depend on how the set was made; journal entries hold times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and not path.name.startswith((".lock", "unit-", "ledger"))
        and path.name != "manifest.json"
    }


@pytest.mark.slow
def test_new_records_become_units_after_the_old(
    corpus: Path, more: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings()
    before = label([str(corpus)], config)
    old = shard_bytes(config.out)
    known = scan(config.out).collect()["id"].is_in([f"doc{i}" for i in range(4)]).sum()
    summary = label([str(more)], settings(append=True))
    assert f"{known} rows are in it already" in capsys.readouterr().err
    assert summary.status == "complete"
    assert summary.units_reused == before.units
    assert summary.rejects == 2
    reasons = {r["id"]: r["reason"] for r in read_rejects(config.out).to_pylist()}
    assert reasons.keys() == {"bad", "doc9"}
    assert "another record of this id" in reasons["doc9"]
    new = shard_bytes(config.out)
    assert {name: new[name] for name in old} == old
    assert len(new) == summary.units > before.units
    labels = open_label_set(config.out)
    assert list(validate_label_set(labels)) == []
    assert labels.manifest.plan.path == "plan-0001.parquet"
    assert not (config.out / "plan.parquet").exists()
    assert {*scan(config.out).collect()["id"]} == {
        *(f"doc{i}" for i in range(24)),
        *(f"new{i}" for i in range(8)),
    }
    facts = labels.manifest.provenance
    assert facts["plan"]["inputs"].keys() == {"corpus.jsonl", "more.jsonl"}
    assert facts["planned_rows"] == labels.rows
    assert facts["planned_labels"] == labels.labels


def test_the_same_append_again_changes_nothing(
    corpus: Path, more: Path, settings: Settings
) -> None:
    config = settings()
    label([str(corpus)], config)
    label([str(more)], settings(append=True))
    before = {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()}
    for inputs, changes in (
        ([more], {"append": True}),
        ([corpus], {"append": True}),
        ([corpus], {}),
        ([more], {}),
    ):
        summary = label([str(path) for path in inputs], settings(**changes))
        assert (summary.status, summary.units_labeled) == ("complete", 0)
        assert {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()} == before


def test_appending_only_known_records_leaves_a_set_complete(
    corpus: Path, tmp_path: Path, settings: Settings
) -> None:
    config = settings()
    label([str(corpus)], config)
    before = files_of(config.out)
    again = tmp_path / "again.jsonl"
    again.write_bytes(corpus.read_bytes())
    assert label([str(again)], settings(append=True)).units_labeled == 0
    assert files_of(config.out) == before
    assert open_label_set(config.out).manifest.status == "complete"


def test_a_file_that_has_grown_adds_its_new_records(corpus: Path, settings: Settings) -> None:
    config = settings(unit_labels=100_000)
    label([str(corpus)], config)
    corpus.write_text(corpus.read_text() + json.dumps({"id": "late", "text": "a late dog ran"}))
    with pytest.raises(SoftshardsError, match=r"inputs: here(.|\n)*--append adds"):
        label([str(corpus)], config)
    summary = label([str(corpus)], settings(append=True, unit_labels=100_000))
    assert (summary.units, summary.units_labeled) == (2, 1)
    assert "late" in set(scan(config.out).collect()["id"])


@pytest.mark.slow
def test_an_unfinished_set_can_be_appended_to(
    corpus: Path, more: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    write, calls = labeler.labeling.runs.label_units.write_unit, [0]

    def fail_later(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 2:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(labeler.labeling.runs.label_units, "write_unit", fail_later)
        with pytest.raises(KeyboardInterrupt):
            label([str(corpus)], config)
        calls[0] = 0
        with pytest.raises(KeyboardInterrupt):
            label([str(more)], settings(append=True))
    with pytest.raises(SoftshardsError, match="not finished"):
        open_label_set(config.out)
    partial = open_label_set(config.out, allow_partial=True)
    assert len(partial.shards) == 4
    assert list(validate_label_set(partial)) == []
    summary = label([str(corpus)], config)
    assert summary.units_reused == 4
    assert list(validate_label_set(open_label_set(config.out))) == []
    assert summary.rows == read_manifest(config.out).provenance["planned_rows"]


def test_other_settings_are_refused(corpus: Path, more: Path, settings: Settings) -> None:
    with pytest.raises(SoftshardsError, match="no label set to append to"):
        label([str(corpus)], settings(append=True))
    config = settings()
    label([str(corpus)], config)
    before = {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()}
    for changes, message in (
        ({"k": 4}, "k: here 8, asked 4"),
        ({"unit_labels": 400}, "unit_labels: here 300, asked 400"),
        ({"seed": 1}, "seed: here 0, asked 1"),
        ({"text_column": "body"}, "text_column: here 'text', asked 'body'"),
        ({"tools_column": "functions"}, "tools_column: here None, asked 'functions'"),
        ({"max_reject_share": 0.01}, "more than --max-reject-share"),
        ({"strict": True}, "row bad"),
    ):
        with pytest.raises(SoftshardsError) as caught:
            label([str(more)], settings(append=True, **changes))
        assert message in str(caught.value)
    assert {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.local("in a store a manifest is new only once it is sent; kills: test_store_runs.py")
def test_a_kill_leaves_the_old_set_or_the_new(
    corpus: Path, more: Path, settings: Settings, tmp_path: Path
) -> None:
    old, whole = settings(out=tmp_path / "old"), settings(out=tmp_path / "whole", append=True)
    rows = label([str(corpus)], old).rows
    shutil.copytree(old.out, whole.out)
    label([str(more)], whole)
    for step, when, switched in (
        ("write_rejects", "after", False),
        ("write_manifest", "before", False),
        ("write_manifest", "after", True),
    ):
        killed = tmp_path / f"killed {when} {step}"
        shutil.copytree(old.out, killed)
        flags = ["--model", old.model, "--out", killed, "--engine", "transformers", "--k", 8]
        flags += ["--max-length", 64, "--unit-labels", 300, "--row-group-labels", 128, "--append"]
        done = fork_server("tests.labeler.preload").run(
            "tests.labeler.faults", f"dies-{when}-{step}", "label", more, *flags
        )
        assert done.returncode == 9, done.stderr
        manifest = read_manifest(killed)
        assert (manifest.status == "running") == switched
        open_plan(killed, manifest.plan)
        left = open_label_set(killed, allow_partial=True)
        assert all(finding.note for finding in validate_label_set(left))
        assert left.rows == rows
        label([str(more)], settings(out=killed, append=True))
        assert files_of(killed) == files_of(whole.out)
        assert list(validate_label_set(open_label_set(killed))) == []
