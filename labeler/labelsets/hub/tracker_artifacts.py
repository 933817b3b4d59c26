"""A label set as an artifact of an experiment tracker, with what it was made from."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from labeler.console import progress
from labeler.labelsets.hub.complete_set import WholeSet, open_whole
from labeler.labelsets.hub.dataset_card import header_facts
from schemas import Manifest, SoftshardsError
from schemas.artifact import ARTIFACT_TYPE, artifact_name, artifact_reference, manifest_alias
from schemas.errors import first_line

Tracker = Literal["wandb", "trackio"]

QUIET: dict[str, dict[str, Any]] = {
    "wandb": {"job_type": ARTIFACT_TYPE},
    "trackio": {"auto_log_cpu": False, "auto_log_gpu": False},
}
"""Settings of a run that only logs an artifact."""
PARENT_FACTS = ("name", "self_digest", "identity_digest", "teacher", "mode")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What was logged.

    Attributes:
        name, aliases: of the artifact; project, run: where.
        files: its files; uploaded: whether their bytes were handed over, or only their place.
        parents: artifacts that the run declares it used.
        unknown_parents: those that the tracker does not know; they are in the metadata alone.
    """

    to: str
    project: str
    run: str
    name: str
    aliases: tuple[str, ...]
    files: int
    uploaded: bool
    parents: tuple[str, ...]
    unknown_parents: tuple[str, ...]


def log_artifact(
    path: Path,
    *,
    to: Tracker,
    project: str,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    upload: bool = False,
) -> Logged:
    """Log a complete label set as an artifact: its files' places and hashes, or the files.

    Args:
        path: the set's folder.
        to: the tracker; where it writes is decided by its own settings (WANDB_MODE, TRACKIO_DIR).
        project: the tracker's project.
        name: the artifact's name; by default made of the folder's.
        aliases: more names of this version, beside `manifest_alias`.
        upload: hand the files over, instead of references to where they are.

    Raises:
        SoftshardsError: the set is not whole, or the tracker is missing or refuses.
    """
    if find_spec(to) is None:
        raise SoftshardsError(
            f"--to {to}: it is not installed", hint="pip install 'softshards[trackers]'"
        )
    whole = open_whole(path)
    whole.say_others()
    manifest = whole.labels.manifest
    tracker = importlib.import_module(to)
    name = name or artifact_name(path)
    names = (manifest_alias(manifest.self_digest), *aliases)
    parents = [
        {fact: parent.get(fact) for fact in PARENT_FACTS}
        for parent in manifest.provenance.get("parents", [])
    ]
    facts = header_facts(manifest)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            run = tracker.init(project=project, config={"label_set": facts}, **QUIET[to])
            try:
                used = {str(parent["name"]): _use(run, parent) for parent in parents}
                metadata = facts | {"parents": parents}
                artifact = _artifact(tracker, whole, name, metadata, upload=upload)
                run.log_artifact(artifact, aliases=list(names))
            finally:
                tracker.finish()
    except Exception as error:  # the trackers have no common error
        raise SoftshardsError(
            f"{to} refuses: {first_line(error)}",
            path=path,
            hint="wandb needs `wandb login`, or WANDB_MODE=offline" if to == "wandb" else None,
        ) from error
    return Logged(
        to=to,
        project=project,
        run=str(run.name or run.id),
        name=name,
        aliases=names,
        files=len(whole.files),
        uploaded=upload,
        parents=tuple(spec for spec in used.values() if spec),
        unknown_parents=tuple(parent for parent, spec in used.items() if not spec),
    )


def _use(run: Any, parent: dict[str, Any]) -> str | None:
    """Declare that the run used a parent; None where the tracker does not know it."""
    spec = artifact_reference(str(parent["name"]), str(parent["self_digest"]))
    try:
        run.use_artifact(spec, type=ARTIFACT_TYPE)
    except Exception:  # not logged, or wandb is offline and cannot look it up
        return None
    return spec


def _artifact(
    tracker: ModuleType, whole: WholeSet, name: str, metadata: dict[str, Any], *, upload: bool
) -> Any:
    artifact = tracker.Artifact(
        name, type=ARTIFACT_TYPE, description=_description(whole.labels.manifest), metadata=metadata
    )
    with progress("files") as bar:
        for file in bar.track(whole.files, description="hashing"):
            source = whole.path.resolve() / file
            if upload:
                artifact.add_file(str(source), name=file)
            else:
                artifact.add_reference(source.as_uri(), name=file)
    return artifact


def _description(manifest: Manifest) -> str:
    facts = header_facts(manifest)
    return (
        f"Soft labels of {facts['teacher']}: {facts['rows']} sequences, {facts['labels']} labels, "
        f"k = {facts['k']}, codec {facts['codec']}"
    )
