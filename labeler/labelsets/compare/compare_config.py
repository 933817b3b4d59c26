"""Settings of `labeler compare`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from cyclopts import Parameter

from labeler.labeling.label_settings import SetLocation


@Parameter(name="*")
@dataclass(frozen=True)
class CompareConfig:
    """The two sides to compare."""

    a: SetLocation
    """Folder or URL of a label set, or a view of one; or a YAML file of `labeler label` settings
    (model, out, ...)."""

    b: SetLocation
    """The other side, over the same rows."""

    inputs: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """With settings: files to label, as for `labeler label`."""

    _: KW_ONLY

    rows: int = 100
    """With settings: records of the input to label."""

    worst: int = 10
    """Positions to show, the ones with the largest KL."""

    allow_partial: bool = False
    """Also compare sets that are still being labeled."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""
