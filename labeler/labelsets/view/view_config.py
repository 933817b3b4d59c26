"""Settings of `labeler view`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from labeler.labeling.label_settings import SetLocation


@Parameter(name="*")
@dataclass(frozen=True)
class ViewConfig:
    """The label sets to show, and where."""

    labels: SetLocation
    """Folder or URL of the label set, or a view of one."""

    other: SetLocation | None = None
    """Second set or view with the same tokenizer, to compare token by token. Rows are matched by
    id, chunk and sample."""

    _: KW_ONLY

    out_file: Annotated[Path | None, Parameter(name="--out")] = None
    """Write this HTML file instead of serving."""

    rows: int = 20
    """With --out: rows to draw at random."""

    seed: int = 0
    """With --out: seed of the draw."""

    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 0
    """Port to serve on; 0 takes a free one."""

    open_browser: Annotated[bool, Parameter(name="--open")] = True
    """Open the page in the default browser."""

    allow_partial: bool = False
    """Also open a set that is still being labeled."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the page's address, or the file's path and size, as JSON on standard output."""
