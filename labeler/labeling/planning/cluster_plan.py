"""Nodes, hours, storage and bandwidth of a large run, from the speed and size of a small one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

HOUR = 3600.0

Bottleneck = Literal["compute", "store", "disk"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured in a label set.

    Attributes:
        engine: name, version and device of what labeled it.
        tokens_per_s: tokens read and generated per second by one teacher.
        labels_per_token: labeled positions per token.
        bytes_per_label: bytes of all files that grow with the set, per label.
        labels_per_unit: of a whole unit: each is a shard and a journal entry.
    """

    engine: str
    tokens_per_s: float
    labels_per_token: float
    bytes_per_label: float
    labels_per_unit: float


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What labels, and where it writes.

    Attributes:
        nodes: that label at once; None if `hours` decides.
        hours: to be done in; None if `nodes` decides.
        engines_per_node: teachers per node.
        store_bytes_per_s: that all nodes together can write; None where it is not known.
        disk_bytes: that are free; None where they are not known.
    """

    nodes: int | None
    hours: float | None
    engines_per_node: int = 1
    store_bytes_per_s: float | None = None
    disk_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """The run.

    Attributes:
        hours: from start to end, without loading the teachers.
        engine_hours: of all teachers together, waiting for the store included.
        write_bytes_per_s: that the teachers produce at full speed.
        store_hours: that writing alone takes; None where the store's bandwidth is not known.
        nodes_that_help: nodes beyond which the store is the limit; None likewise.
        bottleneck: what would have to grow for the run to be faster, or possible at all.
        fits: the disk holds it, and it is done in the hours asked for.
    """

    tokens: int
    labels: int
    bytes: int
    units: int
    nodes: int
    engines: int
    hours: float
    engine_hours: float
    write_bytes_per_s: float
    store_hours: float | None
    nodes_that_help: int | None
    bottleneck: Bottleneck
    fits: bool


def plan_run(
    calibration: Calibration, machines: Machines, *, tokens: int, labels: int
) -> ClusterPlan:
    """Extrapolate a run: teachers do not wait for one another, and the store is shared by all.

    Args:
        calibration: the measured run.
        machines: the cluster.
        tokens: of the corpus, read and generated.
        labels: of the corpus.
    """
    needed = tokens / calibration.tokens_per_s / HOUR
    size = labels * calibration.bytes_per_label
    nodes = machines.nodes or 1
    if machines.hours is not None:
        nodes = max(1, math.ceil(needed / (machines.hours * machines.engines_per_node)))
    engines = nodes * machines.engines_per_node
    compute = needed / engines
    produced = size / (compute * HOUR) if compute else 0.0
    writing = helpful = None
    if machines.store_bytes_per_s is not None:
        writing = size / machines.store_bytes_per_s / HOUR
        helpful = max(1, int(nodes * machines.store_bytes_per_s / produced)) if produced else nodes
    hours = max(compute, writing or 0.0)
    too_large = machines.disk_bytes is not None and size > machines.disk_bytes
    too_long = machines.hours is not None and hours > machines.hours * (1 + 1e-9)
    return ClusterPlan(
        tokens=tokens,
        labels=labels,
        bytes=round(size),
        units=math.ceil(labels / calibration.labels_per_unit),
        nodes=nodes,
        engines=engines,
        hours=hours,
        engine_hours=hours * engines,
        write_bytes_per_s=produced,
        store_hours=writing,
        nodes_that_help=helpful,
        bottleneck="disk" if too_large else "store" if hours > compute else "compute",
        fits=not (too_large or too_long),
    )
