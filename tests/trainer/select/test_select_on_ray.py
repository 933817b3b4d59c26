"""`trainer select` as a user runs it: Ray trains the candidates, and kill -9 ends it midway."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.fork_server import fork_server
from tests.ray_nodes import ray_nodes
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import HANG_SECONDS
from trainer.run_files import LOG, read_lines
from trainer.select.select_record import SelectRecord

NAMES = ("student_lr=0.0002", "student_lr=1e-05", "student_lr=1e-09")


@pytest.mark.slow
def test_a_selection_on_ray_survives_kill_9(world: World, tmp_path: Path) -> None:
    """It is killed in its last rung: the first one is not trained again."""
    probe = build_label_set(
        tmp_path / "probe",
        world.teacher,
        random_rows(6, world.vocab_size, seed=7),
        vocab_size=world.vocab_size,
    )
    content = {
        "base": {"pack_tokens": 128, "packs_per_step": 1, "window": 4, "save_every": 5},
        "teachers": {"tiny": {"labels": str(world.labels), "probe": str(probe)}},
        "grid": {"student": [str(world.student)], "lr": [2e-4, 1e-5, 1e-9]},
        "budget": {"steps": 240, "factor": 2},
    }
    file, out = tmp_path / "select.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    server = fork_server("tests.trainer.preload")
    folders = {name: out / "trials" / name for name in NAMES}

    def step(folder: Path) -> int:
        lines = read_lines(folder / LOG)
        return int(lines[-1]["step"]) if lines else 0

    command = ["trainer", "select", str(file), "--out", str(out), "--per-trial-cpus", "1"]
    busy = "Ray could not be started on this machine"  # within the 15 s that it gives itself
    cluster: list[str] = []
    with ExitStack() as stack:

        def use_cluster() -> None:
            nodes = stack.enter_context(ray_nodes(head=1))
            cluster[:] = ["--ray", nodes.address]

        process = server.start(*command, start_new_session=True)
        deadline = time.monotonic() + HANG_SECONDS
        while max(map(step, folders.values())) <= 120:
            if process.poll() is not None:
                errors = process.communicate()[1]
                assert busy in errors, errors
                assert not cluster
                use_cluster()
                process = server.start(*command, *cluster, start_new_session=True)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = server.run(*command, *cluster, "--json", timeout=HANG_SECONDS)
        if busy in done.stderr and not cluster:
            use_cluster()
            done = server.run(*command, *cluster, "--json", timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    record = SelectRecord.model_validate_json(done.stdout)
    ranked = record.ranked()
    assert (ranked[0].name, ranked[-1].outcome) == (record.best, "eliminated")
    assert "rung 1 of 2: 3 candidates to step 120, 3 of them are there" in done.stderr
    best, other = folders[ranked[0].name], folders[ranked[-1].name]
    assert step(other) == 120
    result = json.loads((best / "result.json").read_text())
    assert result["steps"] == 240
    assert "resuming after step" in (best / "train.log").read_text()
    assert (other / "train.log").read_text().count("paused after step 120 of 240") == 1
