"""Label sets as artifacts, in the real trackers without a network; their records are read back."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2 as wandb_pb

from labeler.labeling.runs.label_run import label
from labeler.labelsets.hub.complete_set import open_complete_set
from schemas import open_label_set
from tests.labeler.conftest import Run, Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def parent_and_child(settings: Settings, corpus: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Make a label set, and one from its rows."""
    parent, child = tmp_path / "first", tmp_path / "second"
    label([str(corpus)], settings(out=parent, limit=6))
    label([str(parent)], settings(out=child, k=4))
    return parent, child


@pytest.fixture
def artifact(run_labeler: Run, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs `labeler artifact`; the trackers write into `tmp_path`."""
    keep = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": f"{tmp_path}/trackio",
    }
    caches = {name: str(tmp_path / name) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR")}

    def run(labels: Path, to: str, *more: str) -> dict[str, Any]:
        command = ["artifact", labels, "--to", to, "--project", "p", "--json", *more]
        done = run_labeler(*command, env=os.environ | keep | caches)
        return dict(json.loads(done.stdout))

    return run


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: 7 bytes, then a LevelDB log in blocks of 32 KiB."""
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = wandb_pb.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def logged_in_wandb(folder: Path) -> Any:
    """Return the only artifact of the newest offline run."""
    runs = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = wandb_records(max(runs, key=lambda path: path.stat().st_mtime_ns))
    (found,) = (r.artifact for r in records if r.WhichOneof("record_type") == "artifact")
    return found


def test_wandb_offline(
    parent_and_child: tuple[Path, Path], artifact: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    parent, child = parent_and_child
    summary = artifact(child, "wandb", "--name", "answers", "--alias", "best")
    assert summary["unknown_parents"] == ["first"], "wandb cannot look it up offline"
    kept = logged_in_wandb(tmp_path)
    manifest = open_label_set(child).manifest
    assert (kept.name, kept.type) == ("answers", "label-set")
    assert {f"manifest-{manifest.self_digest[:16]}", "best"} <= set(kept.aliases)
    facts = json.loads(kept.metadata)
    assert facts["identity_digest"] == manifest.identity_digest
    assert (facts["k"], facts["labels"]) == (4, manifest.totals.labels)
    assert facts["parents"][0]["self_digest"] == open_label_set(parent).manifest.self_digest
    files = open_complete_set(child).files
    assert {e.path: e.ref for e in kept.manifest.contents} == {
        file: (child / file).as_uri() for file in files
    }
    artifact(child, "wandb", "--upload")
    kept = logged_in_wandb(tmp_path)
    assert kept.name == "second"
    assert {e.path for e in kept.manifest.contents} == set(files)
    for entry in kept.manifest.contents:
        assert Path(entry.local_path).read_bytes() == (child / entry.path).read_bytes()


def test_trackio_keeps_lineage(
    parent_and_child: tuple[Path, Path], artifact: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    parent, child = parent_and_child
    assert artifact(child, "trackio")["unknown_parents"] == ["first"]  # not logged yet
    artifact(parent, "trackio", "--upload")
    summary = artifact(child, "trackio")
    digest = open_label_set(parent).manifest.self_digest
    assert summary["parents"] == [f"first:manifest-{digest[:16]}"]
    with sqlite3.connect(tmp_path / "trackio" / "p.db") as db:
        links = db.execute(
            "SELECT a.name, l.direction FROM run_artifact_links l"
            " JOIN artifact_versions v ON v.id = l.artifact_version_id"
            " JOIN artifacts a ON a.id = v.artifact_id WHERE l.run_name = ?",
            (summary["run"],),
        ).fetchall()
        assert sorted(links) == [("first", "input"), ("second", "output")]
        versions = db.execute(
            "SELECT a.name, v.metadata, v.manifest FROM artifact_versions v"
            " JOIN artifacts a ON a.id = v.artifact_id"
        ).fetchall()
    kept = {name: (json.loads(facts), json.loads(files)) for name, facts, files in versions}
    assert len(versions) == 2, "the same files are one version"
    assert kept["second"][0]["identity_digest"] == open_label_set(child).manifest.identity_digest
    assert all(entry["ref"].startswith("file://") for entry in kept["second"][1])
    blobs = {path.name: path for path in (tmp_path / "trackio" / "artifacts").rglob("*")}
    for entry in kept["first"][1]:
        assert blobs[entry["digest"]].read_bytes() == (parent / entry["path"]).read_bytes()


def test_refusals(run_labeler: Run, tmp_path: Path, parent_and_child: tuple[Path, Path]) -> None:
    parent, _ = parent_and_child
    online = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_API_KEY")}
    online |= {"WANDB_DIR": str(tmp_path), "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = ["artifact", parent, "--to", "wandb", "--project", "p"]
    done = run_labeler(*command, env=online, code=2)
    assert "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    (parent / "plan.parquet").write_bytes(b"altered")
    done = run_labeler(*command, env=online | {"WANDB_MODE": "offline"}, code=2)
    assert "plan.parquet" in done.stderr
    assert not list(tmp_path.glob("wandb/offline-run-*"))
