"""How to make the report again: commands, from the settings that results record."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from schemas import LabelSet
from schemas.redact import redacted
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.grouping import ALWAYS
from trainer.evaluate.results import EvaluationResults
from trainer.report.label_flags import input_names, label_flags
from trainer.report.report_config import ReportConfig
from trainer.report.report_data import ReportedModel, Reproduction, Step
from trainer.report.ship_verdict import start_of
from trainer.slice.slice_result import SLICE, SliceResult
from trainer.train.train_config import TrainConfig

PACKAGES = ("softshards", "torch", "transformers", "tokenizers", "accelerate", "pyarrow", "numpy")
WORKLOAD = ("sequences", "prompt_tokens", "new_tokens", "repeats", "dtype", "kv_cache_gb")
"""Facts of `labeler bench` that have the names of their flags."""


def reproduction(
    config: ReportConfig,
    label_sets: list[LabelSet],
    models: list[ReportedModel],
    results: EvaluationResults,
    workload: Mapping[str, str | int | float],
) -> Reproduction:
    """Return the commands that made what is reported, and the versions of this machine.

    Args:
        config: the settings of the report.
        label_sets: the sets of --labels.
        models: all models.
        results: the measurements.
        workload: facts of `labeler bench`.
    """
    steps = [_label_step(labels) for labels in label_sets]
    starts = {str(m.training.config["student"]): start_of(m) for m in models if m.training}
    for start, weights in starts.items():
        same = (Path(m.path) for m in models if m.measured and m.measured.weights == weights)
        steps += _slice_step(start, [Path(start), *same], results, label_sets)
    steps += [_train_step(m.name, m.training.config) for m in models if m.training is not None]
    steps += [_evaluate_step(config, models, results)]
    if config.bench is not None:
        flags: dict[str, object] = {"labels": workload.get("labels", results.label_set.path)}
        flags |= {name: workload[name] for name in WORKLOAD if name in workload}
        flags["concurrency"] = [n for n in str(workload.get("concurrency", "")).split(", ") if n]
        named = [f"{m.name}={_model_path(m)}" for m in models]
        command = _command("labeler bench", named, flags | {"out": config.bench})
        steps.append(Step(makes="speeds", command=command))
    steps.append(Step(makes="this report", command=_command("trainer report", [], _given(config))))
    return Reproduction(steps=steps, versions=_versions())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _label_step(labels: LabelSet) -> Step:
    flags = label_flags(labels) | {"out": labels.place}
    return Step(
        makes=labels.place,
        command=_command("labeler label", input_names(labels), flags),
        note="Input files by name: plan.parquet has the rows, manifest.json their digests.",
    )


def _slice_step(
    student: str, places: list[Path], results: EvaluationResults, label_sets: list[LabelSet]
) -> list[Step]:
    """Return the step that made a student, if it was sliced.

    Args:
        student: its folder, as `trainer train` was given it.
        places: where it may be now.
        results: the measurements.
        label_sets: of the report.
    """
    file = next((place / SLICE for place in places if (place / SLICE).is_file()), None)
    if file is None:
        return []
    made = SliceResult.read(file, "the result of `trainer slice`")
    flags: dict[str, object] = {
        n: v for n, v in made.asked.items() if n not in ("teacher", "labels") and v is not None
    }
    known = (s.place for s in label_sets if s.digests == made.asked.get("labels"))
    teacher = made.teacher or results.teacher.path or "TEACHER"
    labels = made.labels or next(known, "LABELS")
    flags |= {"teacher": teacher, "labels": labels, "out": student}
    note = f"Keeps layers {', '.join(map(str, made.layers))} of {made.of}."
    return [Step(makes=student, command=_command("trainer slice", [], flags), note=note)]


def _train_step(name: str, settings: Mapping[str, JsonValue]) -> Step:
    defaults = {
        f.name: list(f.default) if isinstance(f.default, tuple) else f.default
        for f in fields(TrainConfig)
        if f.default is not MISSING
    }
    given = {n: v for n, v in settings.items() if n not in defaults or v != defaults[n]}
    return Step(makes=name, command=_command("trainer train", [], given))


def _evaluate_step(
    config: ReportConfig, models: list[ReportedModel], results: EvaluationResults
) -> Step:
    flags: dict[str, object] = {"labels": results.label_set.path}
    flags |= {"teacher": results.teacher.path} if results.teacher.path else {}
    flags["model"] = [_model_path(m) for m in models if m.role != "teacher"]
    measured = [m.measured for m in models if m.measured]
    dtypes = sorted({each.dtype for each in measured})
    flags |= {"dtype": dtypes[0]} if len(dtypes) == 1 and dtypes != ["fp32"] else {}
    flags["by"] = [n for n in dict.fromkeys(n for m in measured for n in m.by) if n not in ALWAYS]
    k = results.label_set.identity.k
    depths = {each.top_k for each in measured} - {min(EvaluateConfig.top_k, k)}
    flags |= {"top_k": max(depths)} if depths else {}
    kept = max((len(each.worst) for each in measured), default=0)  # fewer rows keep fewer
    flags |= {"worst": kept} if kept == 0 or kept > EvaluateConfig.worst else {}
    if tasks := [task.path or task.name for task in results.tasks]:
        settings = results.tasks[-1].settings
        flags |= {
            "tasks": ",".join(dict.fromkeys(tasks)),
            "task_shots": settings.shots,
            "task_limit": settings.limit,
            "task_chat": settings.chat_template or None,
        }
    if results.answers:
        flags["reference"] = results.answers[-1].reference
        flags["answers"] = list(dict.fromkeys(each.path for each in results.answers))
        flags["verdicts"] = list(dict.fromkeys(v for a in results.answers for v in a.verdicts))
        flags["refusal_pattern"] = results.answers[-1].refusal_pattern
    return Step(
        makes="held-out measurements",
        command=_command("trainer evaluate", [], flags | {"out": config.eval}),
    )


def _model_path(model: ReportedModel) -> str:
    return model.measured.paths[0] if model.measured else model.path


def _given(config: ReportConfig) -> dict[str, object]:
    return {
        f.name: value
        for f in fields(config)
        if (value := getattr(config, f.name)) != f.default and f.name != "json"
    }


def _command(name: str, words: Iterable[str], flags: Mapping[str, object]) -> str:
    """Return a command line that a shell reads as these words; lists are repeated flags."""
    parts = [*name.split(), *words]
    for flag, value in flags.items():
        option = f"--{flag.replace('_', '-')}"
        if value is True:
            parts.append(option)
        elif value is False:
            parts.append(f"--no-{flag.replace('_', '-')}")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                text = inner if isinstance(inner, str) else json.dumps(inner)
                parts += [f"{option}.{key.replace('_', '-')}", text]
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            for one in values:
                parts += [option, str(one)]
    return redacted(shlex.join(parts))
