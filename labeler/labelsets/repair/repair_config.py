"""Settings of `labeler repair`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class RepairConfig:
    """The label set to repair."""

    labels: Path
    """Folder of the label set."""

    _: KW_ONLY

    model: Path | None = None
    """Folder of the teacher, or its OWNER/NAME[@REVISION] on the Hub, to copy tokenizer files from;
    by default the one the set names."""

    dry_run: bool = False
    """Print what would be done; change nothing."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output: moved, rebuilt, redo and left."""
