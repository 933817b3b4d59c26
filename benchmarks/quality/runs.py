"""One arm with one seed: trained, measured, and kept as a row; or reused."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.arms import TRAIN, Arm
from benchmarks.quality.data import Inputs, call, generations, steps_of
from schemas.atomic import write_atomic
from schemas.fingerprint import weights_digest
from trainer.evaluate.results import measured, read_results
from trainer.train.checkpoint import CHECKPOINTS
from trainer.train.run_record import FINAL, RESULT
from trainer.train.run_state import LOG

ROW = "row.json"
EVAL = "eval.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs share."""

    inputs: Inputs
    out: Path
    tokens: int
    engine: str
    keep_models: bool


def row_of(arm: Arm, seed: int, settings: Settings) -> dict[str, Any] | None:
    """The row that an earlier call left, if it is of these very settings."""
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
    labels, *mix = sets
    flags: list[object] = ["--labels", labels, "--student", inputs.student, "--out", folder]
    flags += [x for path in mix for x in ("--mix", path)]
    flags += [x for term in arm.loss for x in ("--loss", term)]
    flags += [*TRAIN, "--seed", seed, "--max-steps", steps_of(sets, tokens, seed)]
    flags += ["--epochs", 1 if arm.generations else -(-tokens // inputs.train.tokens)]
    if arm.online:
        online = ("--teacher", inputs.teacher, "--objective", arm.online)
        call("-m", "benchmarks.quality.online", *online, *flags)
    else:
        call("-m", "trainer", "train", *flags)
    found = measure(inputs, [folder / FINAL], folder / EVAL)[0]
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    row = {
        "student": student_name(inputs.student),
        "loss": arm.name,
        "seed": seed,
        **found,
        "steps": result["steps"],
        "tokens": result["tokens"],
        "labels": sum(json.loads(line)["labels"] for line in lines),
        "label_sets": [path.name for path in sets],
        "train_seconds": result["seconds"],
    }
    content = {"settings": _facts(arm, seed, settings), "row": row}
    write_atomic(folder / ROW, json.dumps(content, indent=1) + "\n")
    _clean(folder, settings)
    return row


def measure(inputs: Inputs, models: list[Path], out: Path) -> list[dict[str, float]]:
    """What `trainer evaluate` says of models on the held-out articles, in float32."""
    flags = [x for model in models for x in ("--model", model)]
    call("-m", "trainer", "evaluate", "--labels", inputs.heldout.path, "--out", out, *flags)
    results = read_results(out, "results of `trainer evaluate`", ("models",))
    names = ("ppl", "kl", "agreement", "ece", "ce")
    return [{name: measured(m, results)["all"][name] for name in names} for m in models]


def student_name(path: Path) -> str:
    """Such as `llama-22-layers`."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return f"{config['model_type']}-{config['num_hidden_layers']}-layers"


def _facts(arm: Arm, seed: int, settings: Settings) -> dict[str, Any]:
    """All that decides what a row says."""
    inputs = settings.inputs
    return {
        "arm": [arm.name, *arm.loss, arm.online, *TRAIN],
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
    """Drop what is no longer needed: 1.7 GB of checkpoint and model for each run."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    if not settings.keep_models:
        shutil.rmtree(folder / FINAL, ignore_errors=True)
