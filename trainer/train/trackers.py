"""Experiment trackers: the settings and metrics of a run, and the label sets that it consumes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rich.console import Console

from schemas import LabelSet, SoftshardsError
from schemas.artifact import ARTIFACT_TYPE, artifact_reference
from schemas.errors import first_line
from schemas.redact import redacted
from trainer.run_files import LogLine
from trainer.train.run_state import Run

PROJECT = "softshards"
WITH_ARTIFACTS = ("wandb", "trackio")


class ArtifactTracker(Protocol):
    """A run of a tracker with artifacts."""

    def use_artifact(self, reference: str, *, type: str) -> object:
        """Declare an artifact as an input of the run."""


def start_tracker(run: Run, console: Console) -> None:
    """Start the tracker with the run's settings and label sets; every rank must call it.

    Trackers with artifacts record that the run uses the artifacts that `labeler artifact` logged.

    Raises:
        SoftshardsError: the tracker refuses.
    """
    name = run.config.tracker
    if name == "none":
        return
    facts = {setting: redacted(str(value)) for setting, value in run.config.to_dict().items()}
    for number, part in enumerate(run.inputs.parts):
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
        tracker: ArtifactTracker = run.accelerator.get_tracker(name, unwrap=True)
        for part in run.inputs.parts:
            _use_artifact(tracker, part.labels, name, console)


def log_step(run: Run, record: LogLine) -> None:
    """Log a line of log.jsonl under the tracker's own step."""
    run.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=run.step)


def label_set_facts(labels: LabelSet) -> dict[str, str]:
    """Return a label set's place, its digests, its teacher's name and its artifact's name."""
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


def _use_artifact(tracker: ArtifactTracker, labels: LabelSet, name: str, console: Console) -> None:
    """Declare that the run uses a set's artifact, if the tracker knows it."""
    reference = artifact_reference(labels.place, labels.manifest.self_digest)
    try:
        tracker.use_artifact(reference, type=ARTIFACT_TYPE)
    except Exception:  # not logged, or wandb is offline and cannot look it up
        console.print(f"{name} knows no artifact {reference}: only the run's config names the set")
