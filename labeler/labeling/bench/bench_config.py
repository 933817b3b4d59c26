"""Settings of `labeler bench`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Count = Annotated[int, Parameter(validator=Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True)
class BenchConfig:
    """The models to measure, and the workload."""

    model: tuple[str, ...]
    """Models, each as FOLDER or NAME=FOLDER; instead of a folder, OWNER/MODEL[@REVISION] on the
    Hub."""

    _: KW_ONLY

    labels: Path
    """Folder of a label set, or a view of one, to take the input sequences from."""

    out_file: Annotated[Path | None, Parameter(name="--out")] = None
    """Write the figures to this JSON file, for `trainer report --bench`."""

    sequences: Count = 16
    """Sequences per measurement."""

    prompt_tokens: Count = 128
    """Tokens read per sequence."""

    new_tokens: Count = 64
    """Tokens generated per sequence."""

    repeats: Count = 5
    """Measurements per model; the median counts, and half of their range is shown beside it."""

    dtype: str = "float32"
    """dtype to run all models in."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""
