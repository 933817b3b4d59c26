"""Settings of `labeler preview`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from cyclopts import Parameter

from labeler.labeling.label_config import PreviewConfig


@Parameter(name="*")
@dataclass(frozen=True)
class PreviewCommand:
    """The input, the settings of `labeler label`, and the number of rows to show."""

    inputs: tuple[str, ...]
    """Files or folders, as `labeler label` takes them."""

    _: KW_ONLY

    settings: PreviewConfig

    rows: int = 3
    """Rows to show; rejected records count too."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print a JSON list with each token and the kind of its label."""
