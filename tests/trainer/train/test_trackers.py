"""Real trackers, without a network."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas import SoftshardsError, open_label_set
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.train.loop import train


def facts(labels: Path) -> dict[str, str]:
    """Return the facts of the label set that a tracker must record."""
    manifest = open_label_set(labels).manifest
    return {
        "label_set.place": str(labels),
        "label_set.content_digest": open_label_set(labels).content_digest,
        "label_set.identity_digest": manifest.identity_digest,
        "label_set.manifest_digest": manifest.self_digest,
        "label_set.teacher": "teacher",
        "label_set.artifact": f"labels:manifest-{manifest.self_digest[:16]}",
    }


def test_tensorboard(world: World, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(world, tmp_path, tracker="tensorboard", eval_labels=world.labels))
    events = EventAccumulator(str(tmp_path / "softshards"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log(tmp_path)
    ]
    assert [event.step for event in events.Scalars("eval/kl")] == [0, len(losses)]
    assert {"teacher_tail", "student_rest", "lr", "grad_norm"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_wandb_offline(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    train(config(world, tmp_path / "run", tracker="wandb", mix=(f"{world.labels}=0.5",)))
    wandb.teardown()  # waits until everything is written
    assert log(tmp_path / "run")
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"student_rest" in content
    assert b"grad_norm" in content
    for name, value in facts(world.labels).items():
        for key in (name, name.replace("label_set", "label_set.1")):
            assert key.encode() in content
        assert value.encode() in content
    assert f"no artifact {facts(world.labels)['label_set.artifact']}" in capsys.readouterr().err


def test_wandb_without_a_login(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()  # forget the environment that it read before
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("WANDB_DIR", "."), ("HOME", "."), ("NETRC", "none")):
        monkeypatch.setenv(name, str(tmp_path / value))
    with pytest.raises(SoftshardsError, match="WANDB_MODE=offline"):
        train(config(world, tmp_path / "run", tracker="wandb"))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_trackio_keeps_steps_and_lineage(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second of two runs finds the label set that was logged in between."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # trackio reads its folder when it is imported
    settings: dict[str, Any] = {"tracker": "trackio", "max_steps": 3, "eval_labels": world.labels}
    known = facts(world.labels)
    train(config(world, tmp_path / "first", **settings))
    assert f"no artifact {known['label_set.artifact']}" in capsys.readouterr().err
    log_label_set(world.labels, known["label_set.artifact"])
    train(config(world, tmp_path / "second", **settings))
    assert "no artifact" not in capsys.readouterr().err
    with sqlite3.connect(tmp_path / "trackio" / "softshards.db") as db:
        configs = [
            (run, json.loads(kept))
            for run, kept in db.execute("SELECT run_name, config FROM configs ORDER BY id")
        ]
        (_, ours), (second, _) = [(run, kept) for run, kept in configs if "loss" in kept]
        first = configs[0][0]
        links = db.execute("SELECT run_name FROM run_artifact_links WHERE direction = 'input'")
        assert links.fetchall() == [(second,)]
        rows = db.execute(
            "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (first,)
        ).fetchall()
    assert known.items() <= ours.items()
    kept = [(step, json.loads(metrics)) for step, metrics in rows]
    losses = [(step, metrics["loss"]) for step, metrics in kept if "loss" in metrics]
    assert losses == [(line["step"], line["loss"]) for line in log(tmp_path / "first")]
    assert [step for step, metrics in kept if "eval/kl" in metrics] == [0, 3]


def log_label_set(labels: Path, reference: str) -> None:
    """Log a set as `labeler artifact` does: these tests must not import the labeler."""
    import trackio

    name, _, alias = reference.partition(":")
    run = trackio.init(project="softshards", auto_log_cpu=False, auto_log_gpu=False)
    artifact = trackio.Artifact(name, type="label-set")
    artifact.add_reference((labels / "manifest.json").as_uri(), name="manifest.json")
    run.log_artifact(artifact, aliases=[alias])
    trackio.finish()
