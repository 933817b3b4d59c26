"""Settings of `labeler repair`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labeler.labeling.label_settings import SetLocation


@Parameter(name="*")
@dataclass(frozen=True)
class RepairConfig:
    """The label set to repair."""

    labels: SetLocation
    """Folder of the label set, or its URL in an object store: all of it is then copied to this
    machine for the time of the repair."""

    _: KW_ONLY

    model: Path | None = None
    """Folder of the teacher, or its OWNER/NAME[@REVISION] on the Hub, to copy tokenizer files from;
    by default the one the set names."""

    dry_run: bool = False
    """Print what would be done; change nothing."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output: moved, rebuilt, redo and left."""
