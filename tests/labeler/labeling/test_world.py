"""Several processes on one plan in one folder."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs import locks
from labeler.labeling.runs.label_run import label
from labeler.labeling.writing.finalize import close
from schemas import SoftshardsError, open_label_set, validate_label_set
from schemas.atomic import atomic_path
from tests.fork_server import fork_server
from tests.labeler.conftest import Settings
from tests.labeler.labeling.test_run import shard_bytes


def command(corpus: Path, config: LabelConfig, rank: int, world_size: int) -> list[object]:
    flags = ["--model", config.model, "--out", config.out, "--engine", "transformers", "--k", 8]
    flags += ["--max-length", 64, "--unit-labels", 300, "--row-group-labels", 128]
    return ["label", corpus, *flags, "--rank", rank, "--world-size", world_size]


def run_at_once(commands: list[list[object]]) -> None:
    """Run all at the same time; check that each ends well."""
    server = fork_server("tests.labeler.preload")
    running = [server.start("labeler", *command) for command in commands]
    for process in running:
        _, messages = process.communicate(timeout=300)
        assert process.returncode == 0, messages


@pytest.mark.slow
def test_ranks_label_their_own_units_and_the_last_one_closes(
    corpus: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label([str(corpus)], settings(out=tmp_path / "alone"))
    whole = shard_bytes(tmp_path / "alone")
    first = label([str(corpus)], settings(rank=1, world_size=2))
    assert first.status == "running"
    assert first.units_missing == first.units - first.units_labeled == (first.units + 1) // 2
    assert "rank 1 of 2 has finished its" in capsys.readouterr().err
    out = settings().out
    assert [int(name[5:11]) for name in shard_bytes(out)] == list(range(1, first.units, 2))
    partial = open_label_set(out, allow_partial=True)
    assert list(validate_label_set(partial)) == []
    assert (first.rows, first.labels) == (partial.rows, partial.labels)
    again = label([str(corpus)], settings(rank=1, world_size=2))
    assert (again.status, again.units_labeled) == ("running", 0)
    last = label([str(corpus)], settings(rank=0, world_size=2))
    assert (last.status, last.units_missing) == ("complete", 0)
    assert last.units_labeled == (last.units + 1) // 2
    assert shard_bytes(out) == whole
    assert list(validate_label_set(open_label_set(out))) == []


@pytest.mark.slow
def test_processes_that_start_at_once_plan_once_and_finish_one_set(
    corpus: Path, settings: Settings, tmp_path: Path
) -> None:
    """Two ranks, and one process that labels the whole plan: bytes do not mix."""
    label([str(corpus)], settings(out=tmp_path / "alone"))
    config = settings()
    ranks = [(0, 2), (1, 2), (0, 1)]
    run_at_once([command(corpus, config, rank, world) for rank, world in ranks])
    labels = open_label_set(config.out)
    assert list(validate_label_set(labels)) == []
    assert shard_bytes(config.out) == shard_bytes(tmp_path / "alone")
    plan = (config.out / "plan.parquet").read_bytes()
    assert plan == (tmp_path / "alone" / "plan.parquet").read_bytes()


@pytest.mark.local("a store has leases in place of file locks: test_store_runs.py")
def test_one_process_per_rank(corpus: Path, settings: Settings) -> None:
    config = settings(rank=1, world_size=2)
    config.out.mkdir()
    with (
        filelock.FileLock(config.out / ".lock-1-of-2"),
        pytest.raises(SoftshardsError, match="another process of rank 1 is writing"),
    ):
        label([str(corpus)], config)


@pytest.mark.local("a store has leases in place of file locks: test_store_runs.py")
def test_a_process_waits_while_another_one_plans(
    corpus: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    config.out.mkdir()
    held, waits = threading.Event(), threading.Event()
    printed: list[str] = []

    def note(text: str = "", **_: object) -> None:
        printed.append(text)
        if text.startswith("waiting"):
            waits.set()

    def plan_until_another_one_waits() -> None:
        with filelock.FileLock(config.out / ".lock"):
            held.set()
            waits.wait(240)

    monkeypatch.setattr(locks.err, "print", note)
    other = threading.Thread(target=plan_until_another_one_waits)
    other.start()
    held.wait()
    assert label([str(corpus)], config).status == "complete"
    other.join()
    assert f"waiting to plan: another process is using {config.out}" in printed


@pytest.mark.local("a store has no temporary files")
def test_temporary_files_of_a_living_process_are_left_alone(
    corpus: Path, settings: Settings
) -> None:
    config = settings()
    theirs = config.out / "shards" / ".tmp-0123-part-000000.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"half a shard")
    with filelock.FileLock(config.out / ".lock-1-of-2"):
        assert label([str(corpus)], config).status == "complete"
        assert theirs.exists()
    label([str(corpus)], config)
    assert not theirs.exists()


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    code = "from schemas.atomic import atomic_path; from pathlib import Path; import sys\n"
    code += "with atomic_path(Path(sys.argv[1])) as tmp: tmp.write_bytes(b'theirs')"
    final = tmp_path / "file"
    with atomic_path(final) as ours:
        ours.write_bytes(b"ours")
        subprocess.run([sys.executable, "-c", code, str(final)], check=True, timeout=60)
        assert final.read_bytes() == b"theirs"
    assert final.read_bytes() == b"ours"


def test_two_that_finish_together_close_the_same_set(corpus: Path, settings: Settings) -> None:
    config = settings()
    label([str(corpus)], config)
    before = {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()}
    for _ in range(2):
        manifest, _, missing = close(config.out, changed=True)
        assert (manifest.status, missing) == ("complete", [])
    assert {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()} == before
