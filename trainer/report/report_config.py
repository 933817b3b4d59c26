"""Settings of `trainer report`. Attribute docstrings are its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The settings of `trainer report`."""

    eval: Path
    """Results of `trainer evaluate`."""

    out: Path
    """HTML file to write."""

    run: tuple[str, ...] = ()
    """NAME=DIR of a training run (its OUT); repeat for more."""

    baseline: tuple[str, ...] = ()
    """NAME=DIR of a model that was measured but not trained here; repeat for more."""

    labels: tuple[str, ...] = ()
    """Label set whose origin to show; repeat for more."""

    bench: Path | None = None
    """Speeds from `labeler bench --out`."""

    title: str = "Distillation report"
    """Heading of the report."""
