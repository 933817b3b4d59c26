"""Settings of `trainer rounds`. Attribute docstrings are the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """The settings of `trainer rounds` besides its file."""

    out: Path
    """Folder of the rounds: OUT/round-N has the answers, their labels, the measurement and the
    trained student of round N."""

    labeler_python: Path | None = None
    """Python of the environment that has vLLM, such as ~/labeler/bin/python, where this one does
    not; softshards is installed there, too."""

    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Print the tokens, bytes and hours of a round; run nothing that takes long."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the rounds (with --dry-run: the estimate) as JSON on stdout."""
