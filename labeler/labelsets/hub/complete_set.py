"""A label set that is ready to be shared: complete, every byte checked, its files listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labeler.console import err, progress
from schemas.errors import LabelSetError
from schemas.labelset import LabelSet, open_label_set
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST
from schemas.set_files import FOLDERS, declared_files, extra_files
from schemas.set_paths import set_file
from schemas.validate import examine_other_files

PARTS = (
    MANIFEST,
    LEDGER,
    "plan*.parquet",
    *(f"{folder}/*" for folder in FOLDERS),
)
"""Files that a set can have, as patterns in which `*` crosses folders: what a pull asks for."""


@dataclass(frozen=True)
class CompleteSet:
    """A complete label set whose every byte was checked; `open_complete_set` makes it.

    Attributes:
        labels: the opened set.
        files: the files that it declares, relative to the folder, sorted: regular files, no links.
        extra_files: other files in the folder, which are not shared.
        bytes: total size of `files`.
    """

    labels: LabelSet
    files: tuple[str, ...]
    extra_files: tuple[str, ...]
    bytes: int

    @property
    def path(self) -> Path:
        """The set's folder."""
        return self.labels.path

    def warn_extra_files(self) -> None:
        """Name the files in the folder that are left out, so that nobody expects them shared."""
        warn_left_out(self.extra_files)


def warn_left_out(files: Sequence[str]) -> None:
    """Name files beside a label set that are not shared with it."""
    if files:
        shown = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        err.print(f"not part of the label set, left out: {shown}")


def open_complete_set(path: Path) -> CompleteSet:
    """Open a label set, and compare every byte of it with the hashes that it records.

    Args:
        path: the set's folder.

    Raises:
        LabelSetError: the path is a view, the set is unfinished, or a file is missing, altered,
            superfluous or a link.
    """
    if path.is_file():
        raise LabelSetError(
            "this is a file, not the folder of a label set; a view only selects rows of one",
            path=path,
            hint="write the rows of a view as a label set, with `labeler curate --materialize` or "
            "`labeler convert`, and give that",
        )
    labels = open_label_set(path)
    require_intact(labels)
    files = declared_files(labels)
    return CompleteSet(
        labels,
        files=tuple(files),
        extra_files=tuple(extra_files(labels)),
        bytes=sum(set_file(path, file).stat().st_size for file in files),
    )


def require_intact(labels: LabelSet) -> None:
    """Hash every shard and hidden part, and check plan, journal, rejects and head.

    Opening has checked the rest.

    Raises:
        LabelSetError: with the first problem.
    """
    with progress("row groups") as bar:
        for group in bar.track(labels.row_groups, description="checking"):
            labels.read_row_group(group, columns=[])
            if labels.states is not None:
                with labels.hidden.open(labels.hidden.find(group), "full"):
                    pass
    for file in () if labels.states is None else labels.states.files:
        labels.state_file(file)
    for finding in examine_other_files(labels):
        if finding.note:
            continue
        raise LabelSetError(
            str(finding),
            path=labels.path,
            hint=finding.hint or f"see all problems with `labeler verify {labels.path}`",
        )
