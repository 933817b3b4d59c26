"""Settings of `trainer evaluate` and `trainer report`; attribute docstrings are their help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """All that `trainer evaluate` can be told."""

    labels: str | Path
    """Held-out label set to measure on: a folder, a view, or the URL of either."""

    model: tuple[Path, ...]
    """Checkpoint folder to measure; once for each model."""

    out: Path
    """JSON file for the results; models already in it are not measured again."""

    teacher: Path | None = None
    """Teacher's checkpoint, only to count its parameters and bytes; it is not loaded."""

    pack_tokens: int | None = None
    """Tokens run at once; by default 2048, or the label set's longest sequence if that is more."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """What the models run in (log-probabilities are in fp32 either way)."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the results as JSON on stdout."""

    vocab_map: bool = False
    """Measure models whose tokenizer shares almost all tokens with the teacher's, over the rows
    that they can read (see `trainer train --help`). Give it an --out of its own."""

    allow_partial: bool = False
    """Measure on a label set that is still being labeled."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """All that `trainer report` can be told."""

    eval: Path
    """Results of `trainer evaluate`."""

    out: Path
    """HTML file to write."""

    run: tuple[str, ...] = ()
    """NAME=DIR of a training run (its OUT); once for each."""

    baseline: tuple[str, ...] = ()
    """NAME=DIR of a model that was measured but not trained here; once for each."""

    labels: tuple[str, ...] = ()
    """Label set to say the origin of; once for each."""

    bench: Path | None = None
    """Speeds from `labeler bench --out`."""

    title: str = "Distillation report"
    """Heading of the report."""
