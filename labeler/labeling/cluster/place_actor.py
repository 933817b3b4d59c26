"""Ask Ray for an actor: its cores and GPUs, on one node or several, away from some nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labeler.labeling.cluster.teacher_actor import TeacherActor
from labeler.labeling.planning.placement import ActorNeeds

NODE_ID = "ray.io/node-id"
"""The label that Ray gives each node."""


def place_actor(ray: Any, needs: ActorNeeds, avoid: Iterable[str]) -> tuple[Any, Any]:
    """Ask Ray for an actor; it is placed once there is room, which an autoscaler may make.

    Args:
        ray: the module, connected.
        needs: what the actor takes.
        avoid: ids of nodes that it must not be placed on.

    Returns:
        The actor's handle, and its placement group where it spans nodes, else None.
    """
    nodes = ", ".join(sorted(avoid))
    selector = {NODE_ID: f"!in({nodes})"} if nodes else {}
    # No restarts by Ray: a new actor has a new lock, and its units are known to be lost.
    options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_restarts": 0}
    group = None
    if not needs.spans:
        options["label_selector"] = selector
    else:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # A bundle per GPU; vLLM's own workers take the bundles of the group they run in.
        share = {"GPU": 1.0, "CPU": max(1.0, needs.cpus // needs.gpus)}
        bundles = [share] * int(needs.gpus)
        selectors = [selector] * len(bundles) if selector else None
        group = ray.util.placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
        options |= {
            "num_cpus": share["CPU"],
            "num_gpus": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_capture_child_tasks=True
            ),
        }
    return ray.remote(**options)(TeacherActor).remote(), group
