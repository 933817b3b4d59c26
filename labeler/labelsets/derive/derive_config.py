"""Settings of `labeler convert` and `labeler merge`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from labeler.labeling.label_settings import SetLocation


@Parameter(name="*")
@dataclass(frozen=True)
class ConvertConfig:
    """The label set to write in another codec."""

    labels: SetLocation
    """Folder or URL of a complete label set, or a view of one."""

    out: SetLocation
    """Folder of the new set, or its URL in an object store."""

    _: KW_ONLY

    codec: Literal["plain", "compact"] = "compact"
    """plain: any Parquet reader reads it. compact: about 60 % of the bytes."""

    drop_states: bool = False
    """Leave hidden states out: the way to save their bytes. They are copied otherwise."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""


@Parameter(name="*")
@dataclass(frozen=True)
class MergeConfig:
    """The label sets that become one."""

    sets: tuple[SetLocation, ...]
    """Folders or URLs of two or more complete label sets, or views; last, that of the new set."""

    _: KW_ONLY

    codec: Literal["plain", "compact"] | None = None
    """Codec of the new set; by default the codec of the first."""

    on_duplicate: Literal["refuse", "first"] = "refuse"
    """For rows whose id, chunk and sample occur in several sets. refuse: name them, and stop.
    first: take the row from the set that is named first."""

    drop_states: bool = False
    """Leave hidden states out. Sets whose states are in different bases can only be merged so."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""
