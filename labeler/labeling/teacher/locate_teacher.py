"""`--model`: the teacher's folder, downloaded from the Hub where it is named by its repository."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from labeler.console import err
from labeler.labeling.label_config import LabelConfig
from schemas.hub_model import ModelSource, locate_model
from schemas.json_values import parse_object
from schemas.manifest import MANIFEST

COMMIT = "teacher_commit"
"""Key of the provenance: the commit of a teacher from the Hub, whose name is under `teacher`."""


def locate_teacher(config: LabelConfig, *, weights: bool) -> tuple[LabelConfig, ModelSource]:
    """Return the settings with the teacher's folder as `model`, and where it comes from.

    A set that was begun keeps its commit, so that the same command resumes it although the
    repository moved on.

    Args:
        config: all settings.
        weights: False downloads configuration and tokenizer only.

    Raises:
        SoftshardsError: as `locate_model`.
    """
    recorded: dict[str, str] | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        provenance = parse_object((config.folder / MANIFEST).read_bytes())["provenance"]
        recorded = recorded_source(provenance) if isinstance(provenance, dict) else None
    source = locate_model(
        config.model,
        say=say,
        revision=config.revision,
        weights=weights and config.engine != "served",
        recorded=recorded,
    )
    return dataclasses.replace(config, model=source.folder, revision=None), source


def source_provenance(source: ModelSource) -> dict[str, str]:
    """Return the teacher as a set's provenance names it."""
    if source.name is None or source.commit is None:
        return {"teacher": str(source.folder)}
    return {"teacher": source.name, COMMIT: source.commit}


def recorded_source(provenance: dict[str, Any]) -> dict[str, str] | None:
    """Return name and commit of a set's teacher; None for a folder."""
    if COMMIT not in provenance:
        return None
    return {"name": str(provenance["teacher"]), "commit": str(provenance[COMMIT])}


def locate_named(
    provenance: dict[str, Any], model: Path | None, revision: str | None, *, weights: bool = True
) -> ModelSource | None:
    """Return the teacher that `model` names, else the one of the provenance; None if neither does.

    Raises:
        SoftshardsError: as `locate_model`.
    """
    recorded = recorded_source(provenance)
    if model is not None:
        return locate_model(model, say=say, revision=revision, weights=weights, recorded=recorded)
    if recorded is not None:
        named = f"{recorded['name']}@{recorded['commit']}"
        return locate_model(named, say=say, weights=weights)
    teacher = provenance.get("teacher")
    return None if teacher is None else ModelSource(folder=Path(str(teacher)))


def say(line: str) -> None:
    """Print a note."""
    err.print(line)
