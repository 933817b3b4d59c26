"""Runs that are killed at random moments, or asked to stop, and gone on with: nothing is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas import open_label_set, validate_label_set
from tests.labeler.labeling.test_run import shard_bytes
from tests.tiny_model import TEXT

POLL = 0.003
"""Seconds between two looks at a run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line, but for --out."""

    source: Path
    flags: tuple[object, ...]

    def start(self, out: Path, *more: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "labeler", "label", self.source, "--out", out]
        arguments = [*map(str, [*command, *self.flags, *more, "--json"])]
        log = out.with_suffix(".log")
        with log.open("a") as said:  # a file, so that a run that is watched never waits for us
            return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True)

    def finish(self, out: Path, *more: object) -> dict[str, object]:
        process = self.start(out, *more)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out.with_suffix(".log").read_text()
        return json.loads(said)


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
    """How far a run is: 0 started, 1 planning, 2 planned, 2 + n with n units done."""
    if (out / "manifest.json").exists():
        return 2 + units_done(out)
    return int(out.exists())


def watch(process: subprocess.Popen[str], out: Path, until: int | None = None) -> list[float]:
    """Seconds from the start at which each mark was reached, until the one asked or the end."""
    started = time.monotonic()
    times = [0.0]
    while process.poll() is None and (until is None or len(times) <= until):
        while len(times) <= mark(out):
            times.append(time.monotonic() - started)
        time.sleep(POLL)
    return [*times, time.monotonic() - started]


def kill_at(run: Job, out: Path, times: list[float], moment: float) -> bool:
    """Start a run and kill it -9 at what was `moment` in a run that reached its marks at `times`.

    The wait is for the last mark before the moment, and then for the rest of the time, so that a
    machine that is slower today kills at the same place. Returns whether the run was still alive.
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
    """R1: each kill is of a run of its own, from its start to its end, which is then resumed."""
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

    def killed(number: int, mode: str, times: list[float], moment: float) -> bool:
        whole, out = tmp_path / f"whole-{mode}", tmp_path / f"killed-{number}"
        alive = kill_at(jobs[mode], out, times, moment)
        done = units_done(out)
        assert jobs[mode].finish(out)["units_reused"] == done
        assert_same(out, whole)
        return alive

    # Two at a time: a start is mostly imports, which keep one core busy.
    with ThreadPoolExecutor(2) as pool:
        times = dict(zip(jobs, pool.map(uninterrupted, jobs), strict=True))
        tasks = []
        for number in range(kills):
            mode = ["score", "generate"][number % 2]
            reached = times[mode]
            # Most of a short run is its start: in half of them, while units are being written.
            first, last = (0.0, reached[-1]) if number % 4 < 2 else (reached[3], reached[-2])
            tasks.append(pool.submit(killed, number, mode, reached, dice.uniform(first, last)))
        alive = sum(task.result() for task in tasks)
    assert alive >= kills - 1, "runs were over before they were killed"


def test_two_processes_on_one_plan_one_of_them_killed(tmp_path: Path, teacher: Path) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run.finish(whole)
    ranks = [run.start(out, "--rank", rank, "--world-size", 2) for rank in range(2)]
    watch(ranks[1], out, until=4)
    assert ranks[1].poll() is None, "it was over before it was killed"
    ranks[1].kill()
    ranks[1].communicate()
    again = run.finish(out, "--rank", 1, "--world-size", 2)
    said, _ = ranks[0].communicate(timeout=300)
    assert ranks[0].returncode == 0
    first = json.loads(said)
    assert first["units_labeled"] == (first["units"] + 1) // 2
    assert again["units_labeled"] > 0
    assert "complete" in (first["status"], again["status"])
    assert_same(out, whole)


def start_and_stop(run: Job, out: Path, signum: int) -> tuple[subprocess.Popen[str], int]:
    """Signal a run in the middle of its units; return it and the units that were done then."""
    process = run.start(out)
    watch(process, out, until=4)
    assert process.poll() is None, "the run was over before it was stopped"
    process.send_signal(signum)
    while "once more to stop at once" not in out.with_suffix(".log").read_text():
        assert process.poll() is None
        time.sleep(POLL)
    return process, units_done(out)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_unit_in_work(
    tmp_path: Path, teacher: Path, signum: int, code: int
) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    out = tmp_path / "out"
    process, before = start_and_stop(run, out, signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, out.with_suffix(".log").read_text()
    summary = json.loads(said)
    assert (summary["status"], summary["stopped_by"]) == ("running", signal.Signals(signum).name)
    assert before <= summary["units_labeled"] == units_done(out) <= before + 2
    assert list(validate_label_set(open_label_set(out, allow_partial=True))) == []
    assert not list(out.rglob(".tmp-*"))
    resumed = run.finish(out)
    assert resumed["units_reused"] == summary["units_labeled"]
    assert resumed["status"] == "complete"


def test_a_second_signal_stops_at_once(tmp_path: Path, teacher: Path) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=200, unit_labels=4000)
    whole, out = tmp_path / "whole", tmp_path / "out"
    process, before = start_and_stop(run, out, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    log = out.with_suffix(".log").read_text()
    assert (process.returncode, said) == (143, ""), log
    assert "interrupted; what was finished is safe" in log
    assert "Traceback" not in log
    assert units_done(out) == before, "the unit in work was finished all the same"
    run.finish(out)
    run.finish(whole)
    assert_same(out, whole)


def test_a_signal_while_there_is_no_unit_to_finish_stops_at_once(
    tmp_path: Path, teacher: Path
) -> None:
    run = job(tmp_path, teacher, "--engine", "transformers", rows=160)
    out = tmp_path / "out"
    run.source.write_text(run.source.read_text() * 50)  # ids that occur twice take time, too
    process = run.start(out, "--max-reject-share", 1)
    while not (out / ".tmp-plan.sqlite").exists():
        assert process.poll() is None
        time.sleep(POLL)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted" in out.with_suffix(".log").read_text()
    assert [path.name for path in out.iterdir() if ".lock" not in path.name] == []
