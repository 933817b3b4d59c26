"""Settings of `trainer select`. Attribute docstrings are the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trainer.sweep.sweep_config import SweepConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """The settings of `trainer select` besides its file."""

    out: Path
    """Folder of the selection: OUT/trials/NAME for each candidate, OUT/select.json, select.md and
    select.html, and OUT/best.yaml."""

    bench: Path | None = None
    """Speeds and memory from `labeler bench --out`, for constraints on them; matched by a
    student's folder, else by its name."""

    ray: str | None = None
    """Train on a Ray cluster, as with `trainer sweep --ray`."""

    per_trial_cpus: float | None = None
    """CPU cores per candidate, as with `trainer sweep`."""

    per_trial_gpus: float | None = None
    """GPUs per candidate, as with `trainer sweep`."""

    tflops: float | None = None
    """Speed of a device in training, in TFLOP/s, to estimate hours from; about 6 operations per
    parameter and token are needed."""

    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Print the candidates, those that constraints rule out, and the cost of each rung; train
    nothing."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the result (with --dry-run: the plan) as JSON on stdout."""

    @property
    def sweep(self) -> SweepConfig:
        """The settings of the sweep that trains the candidates.

        Raises:
            SoftshardsError: names the flag.
        """
        return SweepConfig(
            out=self.out,
            ray=self.ray,
            per_trial_cpus=self.per_trial_cpus,
            per_trial_gpus=self.per_trial_gpus,
        )
