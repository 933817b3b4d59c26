"""Settings of `labeler inspect`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from labeler.labeling.label_settings import SetLocation


@Parameter(name="*")
@dataclass(frozen=True)
class InspectConfig:
    """The label set to inspect, and the part of it to print."""

    labels: SetLocation
    """Folder or URL of the label set, or a view of one."""

    _: KW_ONLY

    row: str | None = None
    """Id of a row to print, colored by entropy, with its tokens beside the teacher's top 5. `first`
    takes any row; id/chunk=2 or id/sample=1 selects one where several share an id."""

    start: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    """First label of that row to print beside its top 5, counted from 0."""

    positions: Annotated[int, Parameter(validator=Number(gte=1))] = 20
    """Number of labels to print."""

    rejects: bool = False
    """List the records that could not be labeled, and why."""

    allow_partial: bool = False
    """Also open a set that is still being labeled."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""
