"""Settings of `trainer report`. Attribute docstrings are its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The settings of `trainer report`."""

    eval: Path
    """Results of `trainer evaluate`."""

    out: Path
    """HTML file to write. The same as Markdown and JSON is written beside it (report.md,
    report.json)."""

    run: tuple[str, ...] = ()
    """NAME=DIR of a training run (its OUT); repeat for more."""

    baseline: tuple[str, ...] = ()
    """NAME=DIR of a model that was measured but not trained here; repeat for more."""

    student: str | None = None
    """NAME of the run that the verdict is about. The default is the run with the lowest held-out
    KL of those trained on the teacher's labels."""

    keep: float = 0.95
    """Share of the teacher's quality that the student must keep for the verdict to be yes, from 0
    to 1."""

    labels: tuple[str, ...] = ()
    """Label set whose origin and cost to show; repeat for more."""

    bench: Path | None = None
    """Speeds from `labeler bench --out`."""

    prices: Path | None = None
    """Price table in YAML: `currency: EUR`, and below `devices:` lines such as
    `h100: {per_hour: 2.5}` or `api: {per_million_tokens: 0.6}`."""

    export: tuple[Path, ...] = ()
    """Folder of `trainer export` to show; repeat for more."""

    audit: Path | None = None
    """Results of `trainer audit --out` to show."""

    title: str = "Distillation report"
    """Heading of the report."""

    model_card: Annotated[bool, Parameter(negative="")] = False
    """Also write README.md, the model card, into the folder of each run's model (DIR/final). A
    README.md that `trainer report` did not write, or that was edited since, is refused."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the content of report.json on stdout instead of a table."""
