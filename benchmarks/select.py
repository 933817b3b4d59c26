"""S1: `trainer select` against training every candidate to the end.

    python -m benchmarks.select [--quickstart runs/quickstart] [--out runs/select] [--steps 54]

Twelve students of the quickstart's teacher: three shapes (evenly spaced layers of it), soft labels
or tokens alone, two learning rates, trained on the quickstart's articles and measured on held-out
ones. `select` chooses among them, and all are trained to the last step (a selection of one rung).
Then the best of all is trained with two more seeds: their standard deviation is the noise that the
choice is judged by. Everything runs in this process, one after the other; its processor time is
counted per run. The benchmark can be killed: the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import yaml

from schemas import SoftshardsError
from trainer.run_files import CHECKPOINTS, RESULT
from trainer.select.run_select import select
from trainer.select.select_config import SelectConfig
from trainer.select.select_record import RECORD, SelectRecord
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_teacher import slice_teacher
from trainer.sweep.grid import Trial
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import TRAIN_LOG, write_settings
from trainer.train.loop import train
from trainer.train.run_record import RunInputs

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".cache" / "smollm2-135m-instruct"
SHAPES = {"l3": (0, 15, 29), "l5": (0, 7, 15, 22, 29), "l8": (0, 4, 8, 13, 17, 21, 25, 29)}
"""Layers that are kept of the teacher's 30."""
GRID = {
    "objective": {"kd": {"loss": ["forward_kl=1"]}, "ce": {"loss": ["ce=1"]}},
    "lr": [2e-4, 1e-3],
}
PACK_TOKENS = 512
SHORT = f"n_tokens <= {PACK_TOKENS}"
"""Rows to train and to measure on: a step of longer ones would take twice as long."""
SEEDS = (1, 2)
COSTS = "costs.jsonl"


def train_here(
    trials: list[Trial],  # noqa: ARG001  # the signature of `train_all`
    left: list[Trial],
    config: SweepConfig,
    inputs: Mapping[str, RunInputs],
    keep: ExitStack | None,  # noqa: ARG001
) -> int:
    """Train trials in this process, and append the processor time of each to OUT/costs.jsonl."""
    for trial in left:
        write_settings(trial, inputs[trial.name].student)
        began, code = time.process_time(), 0
        try:
            code = train(trial.config, inputs[trial.name])
        except SoftshardsError as error:
            (trial.folder / TRAIN_LOG).write_text(f"error: {error}\n")
        cost = {"name": trial.name, "seconds": time.process_time() - began}
        with (config.out / COSTS).open("a") as stream:
            stream.write(json.dumps(cost) + "\n")
        if code:
            return code - 128
        if (trial.folder / RESULT).exists():
            shutil.rmtree(trial.folder / CHECKPOINTS, ignore_errors=True)
    return 0


def short_rows(asked: argparse.Namespace, part: str) -> Path:
    """Return a view of one of the quickstart's label sets, made once."""
    view: Path = asked.out / f"{part}.view.json"
    if not view.exists():
        labels = asked.quickstart / f"labels-{part}"
        command = [sys.executable, "-m", "labeler", "curate", labels, "--out", view]
        subprocess.run([*command, "--where", SHORT], check=True)
    return view


def run(content: dict[str, object], out: Path) -> SelectRecord:
    """Run or resume a selection; return its record.

    Raises:
        SystemExit: a signal stopped it.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "select.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    if code := select(file, SelectConfig(out=out), train_here):
        raise SystemExit(code)
    return SelectRecord.read(out / RECORD, "a selection")


def seconds(out: Path) -> float:
    """Return the processor time of all runs of a selection."""
    lines = (out / COSTS).read_text().splitlines()
    return sum(float(json.loads(line)["seconds"]) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("runs/select"))
    parser.add_argument("--steps", type=int, default=54)
    asked = parser.parse_args()
    labels, probe = (short_rows(asked, part) for part in ("train", "heldout"))
    students = {name: asked.out / "students" / name for name in SHAPES}
    for name, layers in SHAPES.items():
        text = ",".join(map(str, layers))
        slice_teacher(SliceConfig(teacher=TEACHER, labels=labels, out=students[name], layers=text))
    base = {"pack_tokens": PACK_TOKENS, "packs_per_step": 1, "save_every": 0}
    base |= {"eval_every": max(1, asked.steps // 12)}  # five in the second rung, for forecasts
    shared: dict[str, object] = {
        "base": base,
        "teachers": {"smollm2": {"labels": str(labels), "probe": str(probe)}},
    }
    grid = {"student": {name: str(path) for name, path in students.items()}, **GRID}
    all_out, chosen_out, seeds_out = (
        asked.out / name for name in ("exhaustive", "select", "seeds")
    )
    chosen = run(shared | {"grid": grid, "budget": {"steps": asked.steps}}, chosen_out)
    full = run(shared | {"grid": grid, "budget": {"steps": asked.steps, "rungs": 1}}, all_out)
    values = {each.name: each.value for each in full.candidates if each.value is not None}
    best, found = full.best or "", chosen.best or ""
    settings = next(each.settings for each in full.candidates if each.name == best)
    own = {name: settings[name] for name in ("student", "loss", "lr")}
    runs = [{"name": f"seed{seed}", **own, "seed": seed} for seed in SEEDS]
    again = run(shared | {"runs": runs, "budget": {"steps": asked.steps, "rungs": 1}}, seeds_out)
    of_seeds = [values[best], *(each.value for each in again.candidates if each.value is not None)]
    deviation = statistics.stdev(of_seeds)
    forecasts = [
        (made.low, values[each.name], made.high)
        for each in chosen.candidates
        for made in each.forecasts
        if each.name in values
    ]
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        print(f"{name:24} KL {value:.4f}{'  <- select' if name == found else ''}")
    regret = values[found] - values[best]
    figures = {
        "candidates": len(values),
        "tokens_share": round(chosen.tokens / full.tokens, 3),
        "processor_share": round(seconds(chosen_out) / seconds(all_out), 3),
        "best": best,
        "best_kl": round(values[best], 4),
        "selected": found,
        "selected_kl": round(values[found], 4),
        "regret": round(regret, 4),
        "seed_deviation": round(deviation, 4),
        "within_noise": regret <= deviation,
        "forecasts": len(forecasts),
        "forecasts_covered": sum(low <= value <= high for low, value, high in forecasts),
        "exhaustive_seconds": round(seconds(all_out)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
