"""Flags of `trainer evaluate` about answers. Attribute docstrings are their help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Group, Parameter

from schemas.errors import SoftshardsError

ANSWERS = Group("Answers", sort_key=2)


@Parameter(name="*", group=ANSWERS)
@dataclass(frozen=True, kw_only=True)
class AnswerFlags:
    """Answers that `labeler label --mode generate` made with the teacher and with students."""

    answers: tuple[str | Path, ...] = ()
    """Label set of a student's answers; repeat for more. Needs `--reference` and
    `softshards[answers]`."""

    reference: str | Path | None = None
    """Label set of the teacher's answers to the same prompts."""

    verdicts: tuple[Path, ...] = ()
    """Verdicts on the answers, from `labeler curate --verify ... --verdicts FILE`; one file per
    label set."""

    refusal_pattern: str | None = None
    """Regular expression that finds refusals, in place of the project's own patterns."""

    def __post_init__(self) -> None:
        if self.answers and self.reference is None:
            raise SoftshardsError(
                "--answers needs --reference",
                hint="give the teacher's answers to the same prompts",
            )
