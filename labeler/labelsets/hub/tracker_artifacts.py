"""`labeler artifact`: a label set as an artifact of an experiment tracker, with its parents."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

from labeler.console import out, progress
from labeler.labelsets.hub.complete_set import CompleteSet, open_complete_set
from labeler.labelsets.hub.dataset_card import header_facts
from labeler.labelsets.hub.hub_config import ArtifactConfig
from schemas.artifact import ARTIFACT_TYPE, artifact_name, artifact_reference, manifest_alias
from schemas.errors import SoftshardsError, first_line
from schemas.manifest import Manifest
from schemas.set_paths import set_file

Tracker = Literal["wandb", "trackio"]

QUIET: dict[str, dict[str, str | bool]] = {
    "wandb": {"job_type": ARTIFACT_TYPE},
    "trackio": {"auto_log_cpu": False, "auto_log_gpu": False},
}
"""Settings of a run that only logs an artifact."""
PARENT_FACTS = ("name", "self_digest", "identity_digest", "teacher", "mode")


@dataclass(frozen=True, kw_only=True)
class LoggedArtifact:
    """An artifact that was logged.

    Attributes:
        to: the tracker.
        project: the tracker's project.
        run: the run that logged the artifact.
        name: name of the artifact.
        aliases: names of this version.
        files: number of files in it.
        uploaded: whether it holds the files' bytes, or references to them.
        parents: artifacts that the run declares as its inputs.
        unknown_parents: parents that the tracker does not know; they are in the metadata only.
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


class _Run(Protocol):
    """The part of a run that both trackers share, and that lineage needs."""

    def use_artifact(self, artifact: str, /, *, type: str) -> object: ...


class _Artifact(Protocol):
    """The part of an artifact that both trackers share."""

    def add_file(self, path: str, /, *, name: str) -> object: ...

    def add_reference(self, uri: str, /, *, name: str) -> object: ...


def run_artifact(config: ArtifactConfig) -> int:
    """Log a label set as an artifact, and print its name and parents.

    Raises:
        SoftshardsError: as `log_artifact`.
    """
    logged = log_artifact(
        config.labels,
        to=config.to,
        project=config.project,
        name=config.name,
        aliases=config.alias,
        upload=config.upload,
    )
    if config.as_json:
        print(json.dumps(dataclasses.asdict(logged)))
        return 0
    verb = "uploaded" if logged.uploaded else "referenced"
    aliases = ", ".join(logged.aliases)
    where = f"{logged.to}, project {logged.project}, run {logged.run}"
    out.print(f"{logged.name} ({aliases}): {logged.files} files {verb}, {where}")
    for parent in logged.parents:
        out.print(f"made from {parent}")
    for parent in logged.unknown_parents:
        out.print(
            f"made from {parent}, which {logged.to} could not look up: only the metadata names it",
        )
    return 0


def log_artifact(
    path: Path,
    *,
    to: Tracker,
    project: str,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    upload: bool = False,
) -> LoggedArtifact:
    """Log a complete label set as an artifact: its files, or their locations and hashes.

    Args:
        path: the set's folder.
        to: the tracker; its own settings decide where it writes (WANDB_MODE, TRACKIO_DIR).
        project: the tracker's project.
        name: the artifact's name; by default made from the folder's.
        aliases: further names of this version, beside `manifest_alias`.
        upload: upload the files instead of references to them.

    Raises:
        SoftshardsError: the set is incomplete, or the tracker is not installed or refuses.
    """
    if find_spec(to) is None:
        raise SoftshardsError(
            f"--to {to}: the package is not installed", hint="pip install 'softshards[trackers]'"
        )
    complete = open_complete_set(path)
    complete.warn_extra_files()
    manifest = complete.labels.manifest
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
                used = {str(parent["name"]): _use_parent(run, parent) for parent in parents}
                metadata = facts | {"parents": parents}
                artifact = _make_artifact(tracker, complete, name, metadata, upload=upload)
                run.log_artifact(artifact, aliases=list(names))
            finally:
                tracker.finish()
    except Exception as error:  # the trackers have no common error
        raise SoftshardsError(
            f"{to} refuses: {first_line(error)}",
            path=path,
            hint="wandb needs `wandb login`, or WANDB_MODE=offline" if to == "wandb" else None,
        ) from error
    return LoggedArtifact(
        to=to,
        project=project,
        run=str(run.name or run.id),
        name=name,
        aliases=names,
        files=len(complete.files),
        uploaded=upload,
        parents=tuple(reference for reference in used.values() if reference),
        unknown_parents=tuple(parent for parent, reference in used.items() if not reference),
    )


def _use_parent(run: _Run, parent: dict[str, object]) -> str | None:
    """Declare a parent as an input of the run; return None if the tracker does not know it."""
    reference = artifact_reference(str(parent["name"]), str(parent["self_digest"]))
    try:
        run.use_artifact(reference, type=ARTIFACT_TYPE)
    except Exception:  # never logged, or wandb is offline and cannot look it up
        return None
    return reference


def _make_artifact(
    tracker: ModuleType,
    complete: CompleteSet,
    name: str,
    metadata: dict[str, object],
    *,
    upload: bool,
) -> object:
    artifact: _Artifact = tracker.Artifact(
        name,
        type=ARTIFACT_TYPE,
        description=_description(complete.labels.manifest),
        metadata=metadata,
    )
    with progress("files") as bar:
        for file in bar.track(complete.files, description="hashing"):
            source = set_file(complete.path.resolve(), file)
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
