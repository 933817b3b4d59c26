"""Train one arm with one seed, measure it, and keep its row; reuse a row that exists."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.arms import TRAIN, Arm
from benchmarks.quality.data import Inputs, call, generations, state_bytes, steps_of, with_more
from schemas import open_label_set
from schemas.atomic import write_atomic
from schemas.fingerprint import weights_digest
from trainer.evaluate.results import QUALITY, EvaluationResults
from trainer.run_files import CHECKPOINTS, FINAL, LOG, RESULT, read_lines
from trainer.train.run_record import RunResult

ROW = "row.json"
EVAL = "eval.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all runs share."""

    inputs: Inputs
    quickstart: Path
    out: Path
    tokens: int
    engine: str
    keep_models: bool


def row_of(arm: Arm, seed: int, settings: Settings) -> dict[str, Any] | None:
    """Return the row of an earlier call with the same settings, or None."""
    folder = settings.out / f"{arm.name}-seed{seed}"
    try:
        found = json.loads((folder / ROW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.get("settings") != _facts(arm, seed, settings):
        return None
    _clean(folder, settings)
    return dict(found["row"])


def run(arm: Arm, seed: int, settings: Settings) -> dict[str, Any]:
    """Train, measure on the held-out articles, and write the row."""
    inputs, folder = settings.inputs, settings.out / f"{arm.name}-seed{seed}"
    tokens, sets = settings.tokens, [inputs.train.path]
    if arm.generations:
        where, engine = settings.out / "generations", settings.engine
        sets = generations(inputs, where, seed=seed, tokens=tokens, engine=engine)
    if arm.needs_more_labels:
        where = settings.out.parent
        sets = [with_more(inputs, settings.quickstart, where, arm, settings.engine)]
    labels, *mix = sets
    flags: list[object] = ["--labels", labels, "--student", inputs.student, "--out", folder]
    flags += [x for path in mix for x in ("--mix", path)]
    flags += [*arm.flags, *TRAIN, "--seed", seed, "--max-steps", steps_of(sets, tokens, seed)]
    flags += ["--epochs", 1 if arm.generations else -(-tokens // inputs.train.tokens)]
    if arm.online:
        online = ("--teacher", inputs.teacher, "--objective", arm.online)
        call("-m", "benchmarks.quality.online", *online, *flags)
    else:
        call("-m", "trainer", "train", *flags)
    found = measure(inputs, [folder / FINAL], folder / EVAL)[0]
    result = RunResult.read(folder / RESULT, "the result of a run")
    row = {
        "student": student_name(inputs.student),
        "loss": arm.name,
        "seed": seed,
        **found,
        "steps": result.steps,
        "tokens": result.tokens,
        "labels": sum(line["labels"] for line in read_lines(folder / LOG)),
        "label_sets": [path.name for path in sets],
        "state_bytes": state_bytes(open_label_set(labels)),
        "train_seconds": result.seconds,
    }
    content = {"settings": _facts(arm, seed, settings), "row": row}
    write_atomic(folder / ROW, json.dumps(content, indent=1) + "\n")
    _clean(folder, settings)
    return row


def measure(inputs: Inputs, models: list[Path], out: Path) -> list[dict[str, float]]:
    """Return the metrics of models on the held-out articles, in float32."""
    flags = [x for model in models for x in ("--model", model)]
    call("-m", "trainer", "evaluate", "--labels", inputs.heldout.path, "--out", out, *flags)
    results = EvaluationResults.open(out)
    names = {"ce", *(quality.name for quality in QUALITY)}
    return [results.find(model).all.model_dump(include=names) for model in models]


def student_name(path: Path) -> str:
    """Return a name such as `llama-22-layers`."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return f"{config['model_type']}-{config['num_hidden_layers']}-layers"


def _facts(arm: Arm, seed: int, settings: Settings) -> dict[str, Any]:
    """Return everything that decides a row."""
    inputs = settings.inputs
    return {
        "arm": [arm.name, *arm.loss, arm.online, *TRAIN],
        **({"states": [arm.states, arm.temperature]} if arm.needs_more_labels else {}),
        "seed": seed,
        "tokens": settings.tokens,
        "student": _digest(inputs.student),
        "teacher": inputs.train.manifest.identity.weights,
        "train": inputs.train.content_digest,
        "heldout": inputs.heldout.content_digest,
    }


@functools.cache
def _digest(model: Path) -> str:
    return weights_digest(model)


def _clean(folder: Path, settings: Settings) -> None:
    """Delete files that are no longer needed: 1.7 GB of checkpoint and model per run."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    if not settings.keep_models:
        shutil.rmtree(folder / FINAL, ignore_errors=True)
