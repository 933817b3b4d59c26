from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from schemas import Identity, SoftshardsError
from schemas.fingerprint import sha256_file
from tests.fork_server import fork_server
from tests.ray_nodes import ray_nodes
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import HANG_SECONDS, exit_code
from trainer.evaluate.results import HeldOutSet
from trainer.sweep.grid import Trial, read_sweep
from trainer.sweep.leaderboard import Row, group_by_seed, rank_rows
from trainer.sweep.leaderboard_page import print_tables, render_page
from trainer.train.train_config import TrainConfig


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def names(path: Path) -> list[str]:
    return [trial.name for trial in read_sweep(path, Path("out")).trials]


BASE = {"labels": "labels", "eval_labels": "heldout", "student": "models/s"}


def test_grid_and_runs_give_named_trials(tmp_path: Path) -> None:
    content = {
        "base": BASE | {"pack-tokens": 512},
        "slices": {"half": {"teacher": "models/t", "keep": 2}},
        "grid": {
            "student": {"small": "models/s", "half": "half"},
            "objective": {"kd": {"loss": ["forward_kl=1", "ce=0.5"]}, "ce": {"loss": ["ce=1"]}},
            "seed": [0, 1],
        },
        "runs": [{"student": "models/own", "lr": "1e-3"}, {"name": "Long one", "epochs": 9}],
    }
    sweep = read_sweep(write(tmp_path / "s.yaml", content), Path("out"))
    by_name: dict[str, Trial] = {trial.name: trial for trial in sweep.trials}
    assert list(by_name) == [
        *(f"{s}_{o}_seed={n}" for s in ("small", "half") for o in ("kd", "ce") for n in (0, 1)),
        *("own_lr=0.001", "Long-one"),
    ]
    one = by_name["half_ce_seed=1"]
    assert one.label == "half_ce"
    assert one.folder == Path("out/trials/half_ce_seed=1")
    assert one.config.student == sweep.slices[0].out == Path("out/students/half")
    assert (one.config.loss, one.config.seed, one.config.pack_tokens) == (("ce=1",), 1, 512)
    assert str(sweep.slices[0].labels) == "labels"
    assert by_name["own_lr=0.001"].config.lr == 1e-3
    assert by_name["Long-one"].config.epochs == 9
    # The settings that the process gets parse to the same ones.
    again = write(tmp_path / "t.yaml", {"base": one.settings, "runs": [{"name": "x", "seed": 1}]})
    assert read_sweep(again, Path("out")).trials[0].settings == one.settings


def test_names_stay_when_trials_are_added(tmp_path: Path) -> None:
    content: dict[str, Any] = {"base": BASE, "grid": {"lr": [1e-3, 2e-3], "seed": [0]}}
    before = names(write(tmp_path / "a.yaml", content))
    content["grid"] = {"lr": [5e-4, 0.001, "2e-3"], "seed": [3, 0]}
    assert set(before) < set(names(write(tmp_path / "b.yaml", content)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grid": {"sed": [1, 2]}},
            r"grid\.sed: there is no flag sed\n  hint: did you mean seed\?",
        ),
        ({"base": BASE | {"pack_token": 1}}, "did you mean pack_tokens?"),
        ({"runs": [{"learning": 1}]}, r"runs\[0\]: there is no flag learning"),
        ({"epochs": 2}, "unknown key epochs(.|\n)*belong under `base`"),
        ({"grid": {"lr": [1e-3, "fast"]}}, 'trial .*lr.*unable to convert "fast" into float'),
        ({"grid": {"lr": [-1]}}, "--lr is -1.0; it must be above 0"),
        ({"grid": {"seed": []}}, r"grid\.seed must be a list of values"),
        ({"grid": {"seed": 3}}, r"grid\.seed must be a list of values"),
        ({"grid": {"labels": ["a", "b"]}}, "labels, which must be the same for all trials"),
        ({"runs": [{"out": "x"}]}, "out, which the sweep sets itself"),
        ({"grid": {"student": ["a/final", "b/final"]}}, "two trials are named final(.|\n)*name"),
        ({"grid": {"a": {"x": {"lr": 1}}, "b": {"y": {"lr": 2}}}}, "lr is on two axes"),
        ({"base": {"labels": "labels"}}, "base has no eval_labels"),
        ({"base": {"labels": "l", "eval_labels": "h"}}, "student"),
        ({"slices": {"half": {"teacher": "t", "kep": 2}}}, "did you mean keep?"),
        ({"runs": None}, "no trial in it"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content: dict[str, Any] = {"base": BASE, "runs": [{"seed": 1}]}
    path = write(tmp_path / "s.yaml", content | change)
    with pytest.raises(SoftshardsError, match=message) as error:
        read_sweep(path, Path("out"))
    assert str(path) in str(error.value)


def row(name: str, kl: float, parameters: int, speed: float | None = None, **more: Any) -> Row:
    settings = {"student": name.partition("_")[0], **more}
    return Row(
        name=name,
        label=name.partition("_seed")[0],
        status="finished",
        settings=settings,
        ppl=10 * kl,
        kl=kl,
        agreement=0.5,
        ece=kl / 10,
        parameters=parameters,
        bytes=4 * parameters,
        generating=speed,
    )


def test_front_and_spread_by_hand() -> None:
    rows = [
        row("big", 0.1, 100, 10.0),
        row("mid_seed=0", 0.2, 50, 20.0, seed=0),
        row("mid_seed=1", 0.4, 50, 20.0, seed=1),
        row("dull", 0.4, 50, 20.0),  # worse than mid's mean, no smaller, no quicker
        row("quick", 0.5, 50, 30.0),
    ]
    found = group_by_seed(rows)
    assert [(group.label, group.front) for group in found] == [
        *(("big", True), ("mid", True), ("dull", False), ("quick", True)),
    ]
    mid = found[1]
    assert mid.names == ["mid_seed=0", "mid_seed=1"]
    assert mid.kl.mean == pytest.approx(0.3)
    assert mid.kl.deviation == pytest.approx(0.02**0.5)  # sqrt((0.1^2 + 0.1^2) / (2 - 1))
    assert (mid.ece.mean, mid.ece.deviation) == pytest.approx((0.03, 0.0002**0.5))
    assert found[0].kl.deviation is None
    # Without a speed for all, speed does not count: quick is only worse.
    slower = [row("big", 0.1, 100), *rows[1:]]
    assert [group.front for group in group_by_seed(slower)] == [True, True, False, False]


def test_unfinished_trials_rank_last() -> None:
    stopped = Row(name="s", label="s", status="stopped", settings={}, kl=0.01)
    failed = Row(name="f", label="f", status="failed", settings={}, note="<why>")
    rows = rank_rows([failed, stopped, row("a", 0.3, 1), row("b", 0.2, 1)])
    assert [each.name for each in rows] == ["b", "a", "s", "f"]
    assert {name for group in group_by_seed(rows) for name in group.names} == {"a", "b"}


def test_the_same_rows_give_the_same_page_and_everything_is_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.console import Console

    nasty = "<script>$x$</script>"
    rows = [row(nasty, 0.3, 1), row("b_seed=0", 0.2, 2, seed=0), row("b_seed=1", 0.1, 2, seed=1)]
    failed = Row(name="f", label="f", status="failed", settings={}, note=nasty)
    identity = Identity.model_construct(k=8)
    held_out = HeldOutSet.model_construct(path="h", labels=9, rows=3, identity=identity)
    given = ("Sweep", "labels", [*rank_rows(rows), failed], group_by_seed(rows), held_out)
    page = render_page(*given)
    assert page == render_page(*given)
    HTMLParser().feed(page)
    assert "<script" not in page
    assert page.count("<svg") == 1
    for text in ("held-out KL to teacher", "parameters (millions)", "The line joins the trials"):
        assert text in page
    assert "0.1500 ± 0.0707" in page
    assert "0.015 ± 0.007" in page  # their calibration error
    assert "(15 bins)" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page)
    print_tables(Console(width=80), given[2], given[3])
    shown = capsys.readouterr().out
    assert "…" not in shown  # no number is cut off in 80 columns
    assert "0.1500 ± 0.0707" in shown
    assert "3.0%" in shown
    assert "ECE: how far" in shown
    assert f"failed: f: {nasty}" in shown


@dataclass(frozen=True)
class Swept:
    """A sweep of three trials on a cluster, killed with -9 midway, then run to its end."""

    out: Path
    students: Path
    content: dict[str, Any]
    finished_before: dict[Path, tuple[int, str]]  # result.json -> mtime in ns, digest
    begun_before: list[Path]
    orphans: list[str]
    output: str


def command(students: Path, out: Path, *more: str) -> list[str]:
    flags = [str(students), "--out", str(out), "--per-trial-cpus", "1", *more]
    return [sys.executable, "-m", "trainer", "sweep", *flags]


def processes_about(out: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(out) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def run(students: Path, out: Path, *more: str, code: int = 0) -> str:
    server = fork_server("tests.trainer.preload")
    done = server.run(*command(students, out, *more)[2:], timeout=HANG_SECONDS)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def run_on_own_ray(students: Path, out: Path, *more: str, code: int) -> str:
    """Run a sweep on a Ray that it starts; on a cluster where Ray's 15 s for that are too few."""
    server = fork_server("tests.trainer.preload")
    done = server.run(*command(students, out, *more)[2:], timeout=HANG_SECONDS)
    assert "starting Ray" in done.stderr
    if "Ray could not be started on this machine" in done.stderr:
        assert done.returncode == 2
        with ray_nodes(head=2) as nodes:
            return run(students, out, *more, "--ray", nodes.address, code=code)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def swept(world: World, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    root = tmp_path_factory.mktemp("swept")
    held_out = build_label_set(
        root / "heldout",
        world.teacher,
        random_rows(16, world.vocab_size, seed=7),
        vocab_size=world.vocab_size,
    )
    make_tokenizer(root / "large")
    make_model(root / "large", vocab_size=world.vocab_size, layers=2, seed=3)
    content = {
        "base": {
            **{"labels": str(world.labels), "eval_labels": str(held_out), "eval_every": 20},
            **{"pack_tokens": 128, "packs_per_step": 1, "window": 4, "epochs": 7, "lr": 1e-3},
            **{"save_every": 5},
        },
        "grid": {"student": {"small": str(world.student)}, "seed": [0, 1]},
        "runs": [
            {
                **{"name": "ce", "loss": ["ce=1"]},
                **{"student": str(root / "large"), "from_config": True},
            }
        ],
    }
    students, out = write(root / "students.yaml", content), root / "out"

    def midway() -> bool:
        """Return True if one trial is finished, and another has a checkpoint far from its end."""
        ended = {path.parent for path in out.glob("trials/*/result.json")}
        steps: dict[Path, int] = {}
        for path in out.glob("trials/*/checkpoints/step-*/meta.json"):
            step = int(path.parent.name.removeprefix("step-"))
            steps[path.parents[2]] = max(step, steps.get(path.parents[2], 0))
        return bool(ended) and any(t not in ended and step <= 40 for t, step in steps.items())

    with ray_nodes(head=2) as nodes:
        process = fork_server("tests.trainer.preload").start(
            *command(students, out, "--ray", nodes.address)[2:], start_new_session=True
        )
        while not midway():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + HANG_SECONDS
        while processes_about(out / "trials") and time.monotonic() < deadline:
            time.sleep(0.1)
        orphans = [str(orphan) for orphan in processes_about(out / "trials")]
        finished = {
            path: (path.stat().st_mtime_ns, sha256_file(path))
            for path in out.glob("trials/*/result.json")
        }
        saved = {path.parents[1] for path in out.glob("trials/*/checkpoints/step-*")}
        begun = [folder for folder in saved if folder / "result.json" not in finished]
        output = run(students, out, "--ray", nodes.address)
    assert f"connecting to Ray: {nodes.address}" in output
    return Swept(out, students, content, finished, begun, orphans, output)


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_behind(swept: Swept) -> None:
    assert swept.orphans == []


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_ends_in_a_leaderboard(swept: Swept) -> None:
    assert 1 <= len(swept.finished_before) < 3
    for path, before in swept.finished_before.items():
        assert (path.stat().st_mtime_ns, sha256_file(path)) == before
    assert swept.begun_before
    for folder in swept.begun_before:
        assert "resuming after step" in (folder / "train.log").read_text()
    board = json.loads((swept.out / "leaderboard.json").read_text())
    assert {each["name"] for each in board["rows"]} == {"small_seed=0", "small_seed=1", "ce"}
    assert [each["status"] for each in board["rows"]] == ["finished"] * 3
    assert all(0 <= each["ece"] <= 1 for each in board["rows"])
    kls = [each["kl"] for each in board["rows"]]
    assert kls == sorted(kls)
    assert board["groups"][0]["front"]  # none is nearer to the teacher
    assert {group["label"]: len(group["names"]) for group in board["groups"]} == {
        **{"small": 2, "ce": 1}
    }
    page = (swept.out / "leaderboard.html").read_text()
    for each in board["rows"]:
        assert each["name"] in swept.output
        assert each["name"] in page


@pytest.mark.slow
def test_a_trial_has_the_settings_of_trainer_train(swept: Swept, world: World) -> None:
    folder = swept.out / "trials" / "small_seed=1"
    result = json.loads((folder / "result.json").read_text())
    base = swept.content["base"] | {"student": world.student, "seed": 1, "out": folder}
    paths = {name: Path(base[name]) for name in ("labels", "eval_labels", "student", "out")}
    assert result["config"] == TrainConfig(**(base | paths)).to_dict()


@pytest.mark.slow
def test_a_finished_sweep_needs_no_ray(swept: Swept) -> None:
    before = (swept.out / "leaderboard.json").read_bytes()
    output = run(swept.students, swept.out, "--json")
    assert "3 trials: 3 reused" in output
    assert "starting Ray" not in output
    board, _ = json.JSONDecoder().raw_decode(output)  # nothing else is on stdout
    assert board == json.loads(before)
    assert (swept.out / "leaderboard.json").read_bytes() == before


@pytest.mark.slow
def test_other_settings_under_an_old_name_are_refused(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**swept.content, "base": swept.content["base"] | {"epochs": 3}}
    path = write(tmp_path / "s.yaml", content)
    assert exit_code(["sweep", str(path), "--out", str(swept.out), "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert "trial small_seed=0" in shown
    assert "config.epochs: then 7, now 3" in shown


@pytest.mark.slow
def test_a_laggard_is_stopped_a_failure_is_named_the_rest_is_reused(
    swept: Swept, tmp_path: Path
) -> None:
    """Add to the finished sweep a student that learns nothing, and one that does not exist.

    These run on a Ray of their own.
    """
    student = swept.content["grid"]["student"]["small"]
    added = [
        {"name": "laggard", "student": student, "lr": 1e-12},
        {"name": "broken", "student": str(tmp_path / "nothing")},
    ]
    content = {**swept.content, "runs": [*swept.content["runs"], *added]}
    students = write(tmp_path / "students.yaml", content)
    bench = tmp_path / "bench.json"
    speeds = {"score_tokens_per_s": 90.0, "generate_tokens_per_s": 77.0}
    models = [{"model": "elsewhere", "name": "ce", **speeds}]
    bench.write_text(json.dumps({"engine": {}, "models": models}))
    asha = ("--stop-early", "asha", "--asha-grace", "20", "--bench", str(bench))

    plan = json.loads(run(students, swept.out, *asha, "--dry-run", "--json"))
    states = {each["name"]: (each["state"], each["tokens_left"]) for each in plan["trials"]}
    assert [state for state in states.values() if state[0] == "finished"] == [("finished", 0)] * 3
    assert states["laggard"][0] == states["broken"][0] == "new"
    assert plan["tokens_left"] == 2 * states["laggard"][1] > 0

    output = run_on_own_ray(students, swept.out, *asha, code=1)
    assert "1 of 5 trials failed: broken" in output, output
    rows = {
        each["name"]: each
        for each in json.loads((swept.out / "leaderboard.json").read_text())["rows"]
    }
    assert rows["broken"]["status"] == "failed"
    assert str(tmp_path / "nothing") in rows["broken"]["note"]
    assert rows["laggard"]["status"] == "stopped"
    assert rows["laggard"]["steps"] == 20
    assert rows["ce"]["generating"] == 77.0
    laggard = swept.out / "trials" / "laggard"
    assert not (laggard / "result.json").exists()
    assert any((laggard / "checkpoints").glob("step-*"))  # SIGTERM, not SIGKILL
    for path, before in swept.finished_before.items():
        assert (path.stat().st_mtime_ns, sha256_file(path)) == before
