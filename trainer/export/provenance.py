"""What is known of the origin of a student: who labeled, on what it was trained, its license."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from schemas.version import __version__
from trainer.file_digests import check_digests
from trainer.run_files import BEST, FINAL, RESULT
from trainer.train.run_record import RunResult

LICENSE = ("license", "license_name", "license_link")
"""Keys of a model card; the last two belong to `license: other`."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of a student; None where nothing tells.

    Attributes:
        name: of the run, or of the student's folder.
        student_weights: digest of its weights.
        teacher: the teacher, as the label set names it.
        teacher_weights: digest of the teacher's weights.
        label_set: digest of the rows of the label set that it was trained on.
        license: as the student's model card states it.
    """

    name: str
    student_weights: str
    teacher: str | None = None
    teacher_weights: str | None = None
    label_set: str | None = None
    license: str | None = None

    def as_metadata(self) -> dict[str, str]:
        """Return what is known, by its name in exported files."""
        values = {
            "version": __version__,
            "student_weights": self.student_weights,
            "teacher": self.teacher,
            "teacher_weights": self.teacher_weights,
            "label_set": self.label_set,
        }
        return {name: value for name, value in values.items() if value}


def read_provenance(folder: Path, weights: str) -> Provenance:
    """Return the origin of a student, from the run whose model it is and from its model card.

    Raises:
        SoftshardsError: the run's record is broken, or the model is not as the run left it.
    """
    license_ = read_license(folder).get("license")
    folder = folder.resolve()
    run = folder.parent
    if folder.name not in (FINAL, BEST) or not (run / RESULT).is_file():
        return Provenance(name=folder.name, student_weights=weights, license=license_)
    result = RunResult.read(run / RESULT, "the result of `trainer train`")
    if folder.name == FINAL:
        check_digests(folder, result.files, hint="restore the folder, or export a copy of it")
    teacher = result.label_set.provenance.get("teacher")
    label_set = result.facts.get("labels", {}).get("content")
    return Provenance(
        name=run.name,
        student_weights=weights,
        teacher=teacher if isinstance(teacher, str) else None,
        teacher_weights=result.label_set.identity.weights,
        label_set=label_set if isinstance(label_set, str) else None,
        license=license_,
    )


def read_license(folder: Path) -> dict[str, str]:
    """Return what a folder's model card states about its license, by the Hub's names."""
    card = None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        card = metadata_load(folder / "README.md")
    found = card if isinstance(card, dict) else {}
    values = {name: found.get(name) for name in LICENSE}
    known = {name: value for name, value in values.items() if isinstance(value, str)}
    return known if "license" in known else {}
