"""Settings of a sweep. Attribute docstrings are the help text of `trainer sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from schemas import SoftshardsError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of `trainer sweep` besides the students."""

    out: Path
    """Folder of the sweep: OUT/trials/NAME for each trial, and the leaderboard."""

    stop_early: Literal["none", "asha"] = "none"
    """asha stops trials whose held-out KL falls behind (asynchronous successive halving)."""

    asha_grace: int | None = None
    """Steps before asha may stop a trial; the default is the smallest --eval-every."""

    asha_factor: float = 3.0
    """With asha: of this many trials that reach a rung, one continues; the next rung is this many
    times as far."""

    ray: str | None = None
    """Run the trials on a Ray cluster: HOST:PORT of its head node, or `auto` for RAY_ADDRESS or the
    cluster that this machine belongs to (also without a value). All nodes must share OUT, the label
    sets and the current folder. By default Ray is started on this machine alone."""

    per_trial_cpus: float | None = None
    """CPU cores per trial. The default without a GPU is all of a node's, so that trials run one
    after the other there: on a CPU they would slow each other down."""

    per_trial_gpus: float | None = None
    """GPUs per trial, 1 or a share of one; the default is 1 if there is any."""

    bench: Path | None = None
    """Speeds from `labeler bench --out`; matched by a trial's folder, else by its name."""

    title: str = "Sweep"
    """Heading of the leaderboard."""

    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Print the trials, their states and the tokens left; run nothing."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the leaderboard (with --dry-run: the trials) as JSON on stdout."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SoftshardsError: names the flag.
        """
        if self.asha_factor <= 1:
            raise SoftshardsError(f"--asha-factor is {self.asha_factor}; it must be above 1")
        if self.asha_grace is not None and self.asha_grace < 1:
            raise SoftshardsError(f"--asha-grace is {self.asha_grace}; it must be at least 1")
        if self.per_trial_cpus is not None and self.per_trial_cpus <= 0:
            raise SoftshardsError(f"--per-trial-cpus is {self.per_trial_cpus}; it must be above 0")
        if self.per_trial_gpus is not None and not 0 <= self.per_trial_gpus <= 1:
            raise SoftshardsError(
                f"--per-trial-gpus is {self.per_trial_gpus}; it must be 0 to 1",
                hint="train a student that needs several GPUs with `accelerate launch -m trainer`",
            )
