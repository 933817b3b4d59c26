"""A run on a Ray cluster of three nodes, while actors, nodes and drivers are killed."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from schemas import open_label_set, validate_label_set
from tests.fork_server import Command, fork_server
from tests.labeler.labeling.test_run import shard_bytes
from tests.ray_nodes import ray_nodes
from tests.tiny_model import TEXT

ROWS = 170
"""Make some 60 units."""
PATIENCE = 300


def wait_for(out: Path, units: int, process: Command) -> None:
    """Wait until a run has journaled so many units."""
    until = time.monotonic() + PATIENCE
    while len(list((out / "journal").glob("unit-*.json"))) < units:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_survives_its_actors_nodes_and_drivers_and_ends_without_the_cluster(
    tmp_path: Path, teacher: Path
) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    words = " ".join(TEXT * 5)
    rows = [{"id": f"doc{i}", "text": f"{i} {words}"} for i in range(ROWS)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["label", corpus, "--model", teacher, "--engine", "transformers", "--k", 8]
    flags += ["--max-length", 256, "--unit-labels", 2000, "--json"]
    server = fork_server("tests.labeler.preload")
    with ray_nodes(1, 1) as nodes:
        on_ray = [*flags, "--out", out, "--ray", nodes.address]
        first = server.start("labeler", *on_ray)
        wait_for(out, 2, first)
        nodes.teachers()[0].kill()
        wait_for(out, 8, first)
        nodes.kill(nodes.nodes[0])
        wait_for(out, 16, first)
        first.terminate()
        output, messages = first.communicate(timeout=PATIENCE)
        assert first.returncode == 128 + signal.SIGTERM, messages
        summary = json.loads(output)
        assert (summary["status"], summary["stopped_by"]) == ("running", "SIGTERM")
        done = len(list((out / "journal").glob("unit-*.json")))
        assert summary["units_labeled"] == done
        assert "lost a teacher" in messages
        assert not list(out.glob(".lock-actor-*")), "an actor may still write"
        assert list(validate_label_set(open_label_set(out, allow_partial=True))) == []

        second = server.start("labeler", *on_ray)
        wait_for(out, done + 3, second)
        second.kill()
        second.wait(PATIENCE)
    summary = json.loads(server.run("labeler", *flags, "--out", out).stdout)
    assert summary["status"] == "complete"
    assert summary["units_reused"] >= done + 3
    server.run("labeler", *flags, "--out", tmp_path / "local")
    assert shard_bytes(out) == shard_bytes(tmp_path / "local")
    keys: Counter[tuple[str, int]] = Counter()
    for path in (out / "shards").iterdir():
        table = pq.read_table(path, columns=["id", "chunk"]).to_pylist()
        keys.update((row["id"], row["chunk"]) for row in table)
    assert set(keys.values()) == {1}, "a row is doubled"
    assert {id for id, _ in keys} == {row["id"] for row in rows}
    assert not list(out.rglob(".tmp-*"))
