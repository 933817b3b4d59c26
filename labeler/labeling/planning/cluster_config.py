"""Settings of `labeler plan-cluster`."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from schemas.errors import SoftshardsError

Count = Annotated[int, Parameter(validator=Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True)
class ClusterConfig:
    """A measured run, the corpus to label, and the machines."""

    measured: str
    """Label set that was labeled by the teacher, with the settings and on the device that are
    planned for: its ledger has the speed, its shards the bytes per label. Folder or URL."""

    _: KW_ONLY

    tokens: float | None = None
    """Tokens of the corpus, such as 10e9. Labels and bytes per token are taken from the measured
    set."""

    like: str | None = None
    """In place of --tokens: a label set, finished or only planned, or a file with the output of
    `labeler label --dry-run --json`, whose tokens and labels are planned for."""

    nodes: Count | None = None
    """Nodes that label at once; 1 by default."""

    hours: float | None = None
    """In place of --nodes: hours to be done in. As many nodes are planned as that takes."""

    engines_per_node: Count = 1
    """Teachers per node, one for each GPU or tensor-parallel group."""

    tokens_per_s: float | None = None
    """Tokens per second of one teacher, where it was measured elsewhere (`labeler label --dry-run
    --calibrate`); by default that of the ledger."""

    store_mb_per_s: float | None = None
    """Megabytes per second that all nodes together can write to the disk or object store."""

    disk_gb: float | None = None
    """Gigabytes that are free there."""

    prices: Path | None = None
    """Price table in YAML, as for `trainer report`; `labeling` names the device that one teacher
    runs on."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON on standard output."""

    def __post_init__(self) -> None:
        for one, other in (("tokens", "like"), ("nodes", "hours")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise SoftshardsError(f"--{one} and --{other} exclude each other")
        if self.tokens is None and self.like is None:
            raise SoftshardsError("the size of the corpus is missing", hint="--tokens, or --like")
        for name in ("tokens", "hours", "tokens_per_s", "store_mb_per_s", "disk_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = "--" + name.replace("_", "-")
                raise SoftshardsError(f"{flag} is {value:g}; it must be more than 0")
