"""Settings of `labeler bench`."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from labeler.labeling.label_settings import SetLocation
from schemas.errors import SoftshardsError

Count = Annotated[int, Parameter(validator=Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True)
class BenchConfig:
    """The models to measure, and the workload."""

    model: tuple[str, ...]
    """Models, each as FOLDER or NAME=FOLDER; instead of a folder, OWNER/MODEL[@REVISION] on the
    Hub."""

    _: KW_ONLY

    labels: SetLocation
    """Folder or URL of a label set, or a view of one, to take the input sequences from."""

    out_file: Annotated[Path | None, Parameter(name="--out")] = None
    """Write the figures to this JSON file, for `trainer report --bench`."""

    sequences: Count = 16
    """Sequences at once, to measure tokens/s of reading and of generating."""

    concurrency: tuple[Count, ...] = (1, 8, 64)
    """Requests at once, to measure how long one waits for its first token and for its last; repeat
    for more."""

    prompt_tokens: Count = 128
    """Tokens read per sequence."""

    new_tokens: Annotated[int, Parameter(validator=Number(gte=2))] = 64
    """Tokens generated per sequence."""

    repeats: Count = 5
    """Rounds: in each, the models are measured in turn. The median counts."""

    dtype: str = "float32"
    """dtype to run all models in."""

    kv_cache_gb: float = 1.0
    """Size of the engines' cache in GiB, the same for each model. It must hold all sequences that
    run at once."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""

    def __post_init__(self) -> None:
        if not 0 < self.kv_cache_gb < math.inf:
            raise SoftshardsError(f"--kv-cache-gb is {self.kv_cache_gb}; it must be more than 0")
