"""How to make the report again: commands, from the settings that results record."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from schemas import LabelSet, SoftshardsError
from schemas.redact import redacted
from trainer.evaluate.results import EvaluationResults
from trainer.report.report_config import ReportConfig
from trainer.report.report_data import ReportedModel, Reproduction, Step
from trainer.slice.slice_result import SLICE, SliceResult
from trainer.train.train_config import TrainConfig

PACKAGES = ("softshards", "torch", "transformers", "tokenizers", "accelerate", "pyarrow", "numpy")
LABEL_PLAN = ("seed", "unit_labels", "row_group_labels", "engine")
"""Settings of the plan that are flags of `labeler label`."""


def reproduction(
    config: ReportConfig,
    label_sets: list[LabelSet],
    models: list[ReportedModel],
    results: EvaluationResults,
) -> Reproduction:
    """Return the commands that made what is reported, and the versions of this machine.

    Args:
        config: the settings of the report.
        label_sets: the sets of --labels.
        models: all models.
        results: the measurements.
    """
    steps = [_label_step(labels) for labels in label_sets]
    starts = dict.fromkeys(
        str(m.training.config["student"]) for m in models if m.training is not None
    )
    steps += [step for start in starts if (step := _slice_step(Path(start), results))]
    steps += [_train_step(m.name, m.training.config) for m in models if m.training is not None]
    steps += [_evaluate_step(config, models, results)]
    if config.bench is not None:
        steps.append(
            Step(
                makes="speeds",
                command=_command(
                    "labeler bench",
                    [f"{m.name}={_model_path(m)}" for m in models],
                    {"labels": results.label_set.path, "out": config.bench},
                ),
            )
        )
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
    identity, provenance = labels.manifest.identity, labels.manifest.provenance
    plan = provenance.get("plan") or {}
    flags: dict[str, object] = {"model": provenance.get("teacher") or "TEACHER"}
    flags |= {"mode": identity.mode} if identity.mode != "score" else {}
    flags |= {"k": identity.k, "max_length": identity.max_length}
    if identity.sampling is not None:
        flags |= {
            name: getattr(identity.sampling, name)
            for name in ("temperature", "top_p", "max_tokens")
        }
    flags |= {name: plan[name] for name in LABEL_PLAN if name in plan}
    return Step(
        makes=labels.place,
        command=_command(
            "labeler label", list(plan.get("inputs", {})), flags | {"out": labels.place}
        ),
        note="The main settings; plan.parquet and manifest.json hold all.",
    )


def _slice_step(student: Path, results: EvaluationResults) -> Step | None:
    try:
        made = SliceResult.read(student / SLICE, "the result of `trainer slice`")
    except SoftshardsError:
        return None
    flags = {
        n: v for n, v in made.asked.items() if n not in ("teacher", "labels") and v is not None
    }
    teacher = results.teacher.path or "TEACHER"
    return Step(
        makes=str(student),
        command=_command(
            "trainer slice", [], {"teacher": teacher, "labels": "LABELS", **flags, "out": student}
        ),
        note=f"Keeps layers {', '.join(map(str, made.layers))} of {made.of}.",
    )


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
    dtypes = sorted({m.measured.dtype for m in models if m.measured})
    flags |= {"dtype": dtypes[0]} if len(dtypes) == 1 and dtypes != ["fp32"] else {}
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
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            for one in values:
                parts += [option, str(one)]
    return redacted(shlex.join(parts))
