"""A label set that may be handed on: complete, every byte checked, and which files it is."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from labeler.console import err, progress
from schemas import LabelSet, open_label_set
from schemas.atomic import TMP_PREFIX
from schemas.errors import LabelSetError
from schemas.manifest import MANIFEST
from schemas.validate import examine_other_files

PARTS = (
    MANIFEST,
    "ledger.json",
    "plan*.parquet",
    *(f"{folder}/*" for folder in ("index", "journal", "shards", "tokenizer", "hidden", "head")),
)
"""What belongs to a label set (docs/format.md), as patterns in which `*` crosses folders."""
LEFTOVERS = (f"{TMP_PREFIX}*", f"*/{TMP_PREFIX}*")
CARD = "README.md"
"""The dataset card of a set that was pulled: made anew when it is pushed."""


@dataclass(frozen=True)
class WholeSet:
    """A complete label set whose every byte was checked; `open_whole` makes it.

    Attributes:
        labels: the opened set.
        files: its files, relative, sorted; others: what else is in the folder, which stays there.
        bytes: size of `files`.
    """

    labels: LabelSet
    files: tuple[str, ...]
    others: tuple[str, ...]
    bytes: int

    @property
    def path(self) -> Path:
        """The set's folder."""
        return self.labels.path

    def say_others(self) -> None:
        """Say what in the folder is no part of the set, so that nobody believes it shared."""
        if self.others:
            shown = ", ".join(self.others[:5]) + (", ..." if len(self.others) > 5 else "")
            err.print(f"not part of the label set, left out: {shown}", markup=False)


def open_whole(path: Path) -> WholeSet:
    """Open a label set, and compare every byte of it with the hashes it has of itself.

    Args:
        path: the set's folder.

    Raises:
        LabelSetError: it is a view, is not finished, or a file is missing, altered or too many.
    """
    if path.is_file():
        raise LabelSetError(
            "this is a file, not the folder of a label set; a view only names rows of one",
            path=path,
            hint="write a view's rows out as a set of their own, with `labeler curate "
            "--materialize` or `labeler convert`, and give that",
        )
    labels = open_label_set(path)
    check_bytes(labels)
    files = [
        file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()
    ]
    ours = [file for file in files if belongs(file)]
    return WholeSet(
        labels,
        files=tuple(ours),
        others=tuple(file for file in files if not belongs(file) and not _is_tool_file(file)),
        bytes=sum((path / file).stat().st_size for file in ours),
    )


def belongs(file: str) -> bool:
    """Whether a file, by its path relative to the folder, is part of a label set."""
    return any(fnmatch(file, part) for part in PARTS) and not any(
        fnmatch(file, leftover) for leftover in LEFTOVERS
    )


def _is_tool_file(file: str) -> bool:
    """Locks, what killed writers left, a card that was pulled, the Hub library's notes."""
    return file == CARD or file.startswith((".lock", ".cache/")) or TMP_PREFIX in file


def check_bytes(labels: LabelSet) -> None:
    """Hash every shard, and check plan, journal and rejects; the rest was checked at opening.

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
            hint=finding.hint or f"see all of it with `labeler verify {labels.path}`",
        )
