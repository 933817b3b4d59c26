"""Experiment trackers: what a run tells them, above all which label sets it consumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from schemas import LabelSet, SoftshardsError
from schemas.artifact import ARTIFACT_TYPE, artifact_reference
from schemas.errors import first_line
from trainer.train.run_state import Run

PROJECT = "softshards"
WITH_ARTIFACTS = ("wandb", "trackio")


def start_tracker(run: Run, console: Console) -> None:
    """Begin to log with the settings and label sets of the run; every rank has to call it.

    Trackers with artifacts are told that the run uses those that `labeler artifact` logged.

    Raises:
        SoftshardsError: the tracker refuses.
    """
    name = run.config.tracker
    if name == "none":
        return
    facts = {name: str(value) for name, value in run.config.to_dict().items()}
    for number, part in enumerate(run.parts):
        prefix = f"label_set.{number}" if number else "label_set"
        facts |= {f"{prefix}.{key}": value for key, value in label_set_facts(part.labels).items()}
    try:
        run.accelerator.init_trackers(PROJECT, config=facts)
    except Exception as error:  # the trackers have no common error
        raise SoftshardsError(
            f"--tracker {name} refuses: {first_line(error)}",
            hint="wandb needs `wandb login`, or WANDB_MODE=offline" if name == "wandb" else None,
        ) from error
    if name in WITH_ARTIFACTS and run.is_main:
        tracked: Any = run.accelerator.get_tracker(name, unwrap=True)
        for part in run.parts:
            _use(tracked, part.labels, name, console)


def log_step(run: Run, record: dict[str, Any]) -> None:
    """Log a line of log.jsonl; its step is the tracker's."""
    run.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=run.step)


def label_set_facts(labels: LabelSet) -> dict[str, str]:
    """Where a label set is, what says that another one is the same, and whose labels they are."""
    manifest = labels.manifest
    digests = labels.digests
    return {
        "place": labels.place,
        "content_digest": digests["content"],
        "identity_digest": digests["identity"],
        "manifest_digest": manifest.self_digest,
        "teacher": Path(str(manifest.provenance.get("teacher") or "unknown")).name,
        "artifact": artifact_reference(labels.place, manifest.self_digest),
    }


def _use(tracked: Any, labels: LabelSet, name: str, console: Console) -> None:
    """Declare that the run uses a set's artifact, where the tracker knows it."""
    reference = artifact_reference(labels.place, labels.manifest.self_digest)
    try:
        tracked.use_artifact(reference, type=ARTIFACT_TYPE)
    except Exception:  # not logged, or wandb is offline and cannot look it up
        console.print(f"{name} knows no artifact {reference}: the run's config alone names the set")
