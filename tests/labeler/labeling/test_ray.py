"""Runs on a Ray cluster while actors, nodes and drivers are killed."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from schemas import open_label_set, validate_label_set
from tests.fork_server import Command, fork_server
from tests.labeler.labeling.test_run import shard_bytes
from tests.objects import BUCKET, bucket
from tests.ray_nodes import RayNodes, ray_nodes
from tests.tiny_model import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("object_store")]
ROWS = 170
"""Make some 60 units."""
PATIENCE = 900
"""Seconds without a change, until something is stuck."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A cluster of two nodes, which know the object store."""
    with ray_nodes(1, head=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> list[object]:
    """Return the command that labels ROWS rows, without --out."""
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    words = " ".join(TEXT * 5)
    rows = [{"id": f"doc{i}", "text": f"{i} {words}"} for i in range(ROWS)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--k", 8, "--max-length", 256, "--unit-labels", 2000, "--json"]
    return ["label", corpus, "--model", teacher, "--engine", "transformers", *settings]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, flags: list[object]) -> Path:
    """The same rows, labeled without Ray."""
    out = tmp_path_factory.mktemp("local") / "set"
    fork_server("tests.labeler.preload").run("labeler", *flags, "--out", out)
    return out


def wait_for(count: Callable[[], int], units: int, process: Command) -> None:
    """Wait until a run has journaled so many units."""
    seen, until = -1, 0.0
    while (done := count()) < units:
        assert process.poll() is None, process.communicate()[1]
        if done != seen:
            seen, until = done, time.monotonic() + PATIENCE
        assert time.monotonic() < until
        time.sleep(0.01)


def journaled(out: Path) -> Callable[[], int]:
    return lambda: len(list((out / "journal").glob("unit-*.json")))


def journaled_in_store(url: str) -> Callable[[], int]:
    store = bucket()

    def count() -> int:
        store.invalidate_cache()
        return len(store.glob(f"{url}/journal/unit-*.json"))

    return count


def local_copy(place: Path | str, folder: Path) -> Path:
    """Return a folder with what is behind a URL now; a path is returned as it is."""
    if isinstance(place, Path):
        return place
    bucket().get(f"{place}/", str(folder), recursive=True)
    return folder


def test_a_run_survives_its_actors_nodes_and_drivers_and_ends_without_the_cluster(
    tmp_path: Path,
    nodes: RayNodes,
    flags: list[object],
    local: Path,
    request: pytest.FixtureRequest,
) -> None:
    place: Path | str = tmp_path / "out"
    count, server = journaled(tmp_path / "out"), fork_server("tests.labeler.preload")
    if request.config.getoption("--out-in-store"):  # which does not reach actors
        place = f"{BUCKET}/survives"
        count = journaled_in_store(place)
    if not nodes.nodes:
        nodes.add()
    on_ray = [*flags, "--out", place, "--ray", nodes.address]
    first = server.start("labeler", *on_ray)
    wait_for(count, 2, first)
    nodes.teachers()[0].kill()
    wait_for(count, 8, first)
    nodes.kill(nodes.nodes[0])
    wait_for(count, 16, first)
    first.terminate()
    output, messages = first.communicate(timeout=PATIENCE)
    assert first.returncode == 128 + signal.SIGTERM, messages
    summary = json.loads(output)
    assert (summary["status"], summary["stopped_by"]) == ("running", "SIGTERM")
    done, out = count(), local_copy(place, tmp_path / "stopped")
    assert summary["units_labeled"] == done
    assert "lost a teacher" in messages
    assert not list(out.glob(".lock-actor-*")), "an actor may still write"
    assert not list(out.rglob(".tmp-*")), "a killed actor's files are left"
    assert list(validate_label_set(open_label_set(out, allow_partial=True))) == []

    second = server.start("labeler", *on_ray)
    wait_for(count, done + 3, second)
    second.kill()
    second.wait(PATIENCE)
    summary = json.loads(server.run("labeler", *flags, "--out", place).stdout)
    assert summary["status"] == "complete"
    assert summary["units_reused"] >= done + 3
    out = local_copy(place, tmp_path / "finished")
    assert shard_bytes(out) == shard_bytes(local)
    keys: Counter[tuple[str, int]] = Counter()
    for path in (out / "shards").iterdir():
        table = pq.read_table(path, columns=["id", "chunk"]).to_pylist()
        keys.update((row["id"], row["chunk"]) for row in table)
    assert set(keys.values()) == {1}, "a row is doubled"
    assert {id for id, _ in keys} == {f"doc{i}" for i in range(ROWS)}
    assert not list(out.rglob(".tmp-*"))


def test_actors_finish_in_an_object_store_what_one_process_began_and_one_of_them_is_killed(
    tmp_path: Path, nodes: RayNodes, flags: list[object], local: Path
) -> None:
    url, server = f"{BUCKET}/on-ray", fork_server("tests.labeler.preload")
    alone = server.start(
        *("tests.labeler.faults", "stop-between-units", *flags, "--out", url),
        environment={"UNITS": "3"},
    )
    wait_for(journaled_in_store(url), 3, alone)
    alone.kill()
    alone.wait(PATIENCE)
    run = server.start("labeler", *flags, "--out", url, "--ray", nodes.address)
    wait_for(journaled_in_store(url), 5, run)
    nodes.teachers()[0].kill()
    output, messages = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, messages
    assert "lost a teacher" in messages
    summary = json.loads(output)
    assert (summary["status"], summary["units_reused"]) == ("complete", 3)
    assert bucket().glob(f"{url}/.lock-actor-*") == []
    here = local_copy(url, tmp_path / "here")
    assert shard_bytes(here) == shard_bytes(local)
    assert list(validate_label_set(open_label_set(here))) == []
