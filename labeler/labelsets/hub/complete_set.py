"""A label set that is ready to be shared: complete, every byte checked, its files listed."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from labeler.console import err, progress
from schemas.atomic import TMP_PREFIX
from schemas.errors import LabelSetError
from schemas.labelset import LabelSet, open_label_set
from schemas.manifest import MANIFEST
from schemas.validate import examine_other_files

PARTS = (
    MANIFEST,
    "ledger.json",
    "plan*.parquet",
    *(f"{folder}/*" for folder in ("index", "journal", "shards", "tokenizer", "hidden", "head")),
)
"""Files of a label set (docs/format.md), as patterns in which `*` crosses folders."""
LEFTOVERS = (f"{TMP_PREFIX}*", f"*/{TMP_PREFIX}*")
CARD = "README.md"
"""The dataset card of a pulled set; a push writes it anew."""


@dataclass(frozen=True)
class CompleteSet:
    """A complete label set whose every byte was checked; `open_complete_set` makes it.

    Attributes:
        labels: the opened set.
        files: its files, relative to the folder, sorted.
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
        if self.extra_files:
            shown = ", ".join(self.extra_files[:5]) + (", ..." if len(self.extra_files) > 5 else "")
            err.print(f"not part of the label set, left out: {shown}")


def open_complete_set(path: Path) -> CompleteSet:
    """Open a label set, and compare every byte of it with the hashes that it records.

    Args:
        path: the set's folder.

    Raises:
        LabelSetError: the path is a view, the set is unfinished, or a file is missing, altered or
            superfluous.
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
    found = [
        file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()
    ]
    files = [file for file in found if is_set_file(file)]
    return CompleteSet(
        labels,
        files=tuple(files),
        extra_files=tuple(f for f in found if not is_set_file(f) and not _is_tool_file(f)),
        bytes=sum((path / file).stat().st_size for file in files),
    )


def is_set_file(file: str) -> bool:
    """Return whether a file, by its path relative to the folder, is part of a label set."""
    return any(fnmatch(file, part) for part in PARTS) and not any(
        fnmatch(file, leftover) for leftover in LEFTOVERS
    )


def _is_tool_file(file: str) -> bool:
    """Recognize locks, leftovers of killed writers, a pulled card, and the Hub library's cache."""
    return file == CARD or file.startswith((".lock", ".cache/")) or TMP_PREFIX in file


def require_intact(labels: LabelSet) -> None:
    """Hash every shard, and check plan, journal and rejects; opening has checked the rest.

    Raises:
        LabelSetError: with the first problem.
    """
    with progress("row groups") as bar:
        for group in bar.track(labels.row_groups, description="checking"):
            labels.read_row_group(group, columns=[])
    for finding in examine_other_files(labels):
        raise LabelSetError(
            str(finding),
            path=labels.path,
            hint=finding.hint or f"see all problems with `labeler verify {labels.path}`",
        )
