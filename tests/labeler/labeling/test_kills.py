"""Runs that are killed at random moments, or asked to stop, and resumed: nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas import open_label_set, validate_label_set
from tests.fork_server import Command, fork_server
from tests.labeler.labeling.test_run import shard_bytes
from tests.tiny_model import TEXT

pytestmark = pytest.mark.slow

POLL = 0.003
"""Seconds between two checks of a run."""
PATIENCE = 240
"""Seconds after which a test gives up waiting for a run that does not end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line without --out."""

    source: Path
    flags: tuple[object, ...]

    def start(self, out: Path, *more: object, fault: str | None = None) -> Command:
        module = ("labeler",) if fault is None else ("tests.labeler.faults", fault)
        arguments = ("label", self.source, "--out", out, *self.flags, *more, "--json")
        with out.with_suffix(".log").open("a") as log:
            return fork_server("tests.labeler.preload").start(
                *module, *arguments, stderr=log, environment={"GATE": str(gate_of(out))}
            )

    def finish(self, out: Path, *more: object) -> dict[str, object]:
        process = self.start(out, *more)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out.with_suffix(".log").read_text()
        return json.loads(output)


def gate_of(out: Path) -> Path:
    return out.with_suffix(".gate")


def job(tmp_path: Path, teacher: Path, *flags: object, rows: int, unit_labels: int = 700) -> Job:
    source = tmp_path / "in.jsonl"
    content = [
        {"id": f"r{i}", "text": f"{i} {' '.join(TEXT * 2)}", "prompt": f"{TEXT[i % 5][:30]} {i}"}
        for i in range(rows)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in content))
    small = ["--model", teacher, "--k", 8, "--max-length", 64, "--unit-labels", unit_labels]
    return Job(source=source, flags=(*small, *flags))


def units_done(out: Path) -> int:
    return len(list(out.glob("journal/unit-*.json")))


def mark(out: Path) -> int:
    """Return the progress of a run: 0 started, 1 planning, 2 planned, 2 + n with n units done."""
    if (out / "manifest.json").exists():
        return 2 + units_done(out)
    return int(out.exists())


def watch(process: Command, out: Path, until: int | None = None) -> list[float]:
    """Return the seconds at which each mark was reached, up to mark `until` or the end."""
    started = time.monotonic()
    times = [0.0]
    while process.poll() is None and (until is None or len(times) <= until):
        while len(times) <= mark(out):
            times.append(time.monotonic() - started)
        time.sleep(POLL)
    return [*times, time.monotonic() - started]


def kill_at(run: Job, out: Path, times: list[float], moment: float) -> bool:
    """Start a run and kill it -9 at `moment` of a reference run that reached its marks at `times`.

    Waits for the last mark before the moment, and then for the rest of the time, so that a slower
    machine kills at the same place. Returns whether the run was still alive.
    """
    before = max(n for n, reached in enumerate(times) if reached <= moment)
    process = run.start(out)
    watch(process, out, until=before)
    time.sleep(moment - times[before])
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def assert_same(out: Path, whole: Path) -> None:
    assert shard_bytes(out) == shard_bytes(whole)
    for name in ("plan.parquet", "index/page-000000.parquet", "journal/plan.rejects.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert list(validate_label_set(open_label_set(out))) == []
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.vllm
def test_kill_9_at_random_moments(
    tmp_path: Path, teacher: Path, request: pytest.FixtureRequest
) -> None:
    """R1: each kill hits a separate run, anywhere from start to end, which is then resumed."""
    kills = request.config.getoption("--kills")
    dice = random.Random(20)
    small = ["--max-sequences", 8, "--kv-cache-gb", 0.1]
    generate = ["--mode", "generate", "--max-tokens", 16, "--temperature", 1.0]
    jobs = {
        "score": job(tmp_path, teacher, *small, rows=160),
        "generate": job(tmp_path, teacher, *small, *generate, rows=160),
    }

    def uninterrupted(mode: str) -> list[float]:
        whole = tmp_path / f"whole-{mode}"
        times = watch(jobs[mode].start(whole), whole)
        labels = open_label_set(whole)
        assert labels.rows == labels.manifest.provenance["planned_rows"] >= 160
        return times

    def killed(number: int, mode: str, times: list[float], moment: float) -> None:
        whole, out = tmp_path / f"whole-{mode}", tmp_path / f"killed-{number}"
        while not kill_at(jobs[mode], out, times, moment):
            # The machine was faster than for the reference run: kill another run earlier.
            shutil.rmtree(out)
            moment /= 2
        done = units_done(out)
        assert jobs[mode].finish(out)["units_reused"] == done
        assert_same(out, whole)

    # Two at a time: each keeps one core busy.
    with ThreadPoolExecutor(2) as pool:
        times = dict(zip(jobs, pool.map(uninterrupted, jobs), strict=True))
        tasks = []
        for number in range(kills):
            mode = ["score", "generate"][number % 2]
            reached = times[mode]
            # Most of a short run is its start: in half of them, while units are being written.
            first, last = (0.0, reached[-1]) if number % 4 < 2 else (reached[3], reached[-2])
            tasks.append(pool.submit(killed, number, mode, reached, dice.uniform(first, last)))
        for task in tasks:
            task.result()


def test_two_processes_on_one_plan_one_of_them_killed(tmp_path: Path, teacher: Path) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run.finish(whole)
    ranks = [
        run.start(out, "--rank", 0, "--world-size", 2),
        run.start(out, "--rank", 1, "--world-size", 2, fault="wait-in-third-unit"),
    ]
    while len(list(out.glob("journal/unit-*[13579].json"))) < 2:  # two units of rank 1
        assert ranks[1].poll() is None
        time.sleep(POLL)
    ranks[1].kill()
    ranks[1].communicate()
    again = run.finish(out, "--rank", 1, "--world-size", 2)
    output, _ = ranks[0].communicate(timeout=PATIENCE)
    assert ranks[0].returncode == 0
    first = json.loads(output)
    assert first["units_labeled"] == (first["units"] + 1) // 2
    assert again["units_labeled"] > 0
    assert "complete" in (first["status"], again["status"])
    assert_same(out, whole)


def start_and_stop(run: Job, out: Path, signum: int) -> Command:
    """Signal a run that waits in its third unit; return it once it has handled the signal."""
    process = run.start(out, fault="wait-in-third-unit")
    while units_done(out) < 2:
        assert process.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(POLL)
    process.send_signal(signum)
    while "press Ctrl-C again to stop now" not in out.with_suffix(".log").read_text():
        assert process.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(POLL)
    assert units_done(out) == 2
    return process


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_unit_in_progress(
    tmp_path: Path, teacher: Path, signum: int, code: int
) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    out = tmp_path / "out"
    process = start_and_stop(run, out, signum)
    gate_of(out).touch()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, out.with_suffix(".log").read_text()
    summary = json.loads(output)
    assert (summary["status"], summary["stopped_by"]) == ("running", signal.Signals(signum).name)
    assert summary["units_labeled"] == units_done(out) == 3
    assert list(validate_label_set(open_label_set(out, allow_partial=True))) == []
    assert not list(out.rglob(".tmp-*"))
    resumed = run.finish(out)
    assert resumed["units_reused"] == summary["units_labeled"]
    assert resumed["status"] == "complete"


def test_a_second_signal_stops_at_once(tmp_path: Path, teacher: Path) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=200, unit_labels=4000)
    whole, out = tmp_path / "whole", tmp_path / "out"
    process = start_and_stop(run, out, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    log = out.with_suffix(".log").read_text()
    assert (process.returncode, output) == (143, ""), log
    assert "interrupted; finished work is safe" in log
    assert "Traceback" not in log
    assert units_done(out) == 2, "the unit in progress was finished all the same"
    run.finish(out)
    run.finish(whole)
    assert_same(out, whole)


@pytest.mark.local("waits for the planner's temporary file, which is in the staging folder")
def test_a_signal_while_there_is_no_unit_to_finish_stops_at_once(
    tmp_path: Path, teacher: Path
) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    out = tmp_path / "out"
    process = run.start(out, fault="wait-in-planning")
    while not (out / ".tmp-plan.sqlite").exists():
        assert process.poll() is None
        time.sleep(POLL)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "interrupted" in out.with_suffix(".log").read_text()
    assert [path.name for path in out.iterdir() if ".lock" not in path.name] == []
