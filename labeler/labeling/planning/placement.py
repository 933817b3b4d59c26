"""Where the teachers of a run fit into a cluster: nodes and what one actor takes -> actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import RaySettings
from labeler.labeling.teacher.engine_args import engine_arguments
from schemas import SoftshardsError


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """A living node of a cluster and what it offers in total.

    Attributes:
        id: unique; name: for people.
    """

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class ActorNeeds:
    """What one teacher takes.

    Attributes:
        cpus, gpus: of one node; of `nodes` nodes together where `spans` is True.
        spans: its GPUs are on several nodes, because none has that many.
    """

    cpus: float
    gpus: float
    spans: bool = False

    def __str__(self) -> str:
        gpus = f"{_count(self.gpus, 'GPU')} and " if self.gpus else ""
        return f"{gpus}{_count(self.cpus, 'CPU core')}"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The teachers of a run and the nodes they fit on; Ray decides in the end.

    Attributes:
        nodes: the living nodes.
        needs: of one teacher.
        actors: how many were asked for; None for as many as fit.
    """

    nodes: Sequence[ClusterNode]
    needs: ActorNeeds
    actors: int | None

    def as_json(self) -> dict[str, object]:
        """Return it as `--dry-run --json` prints it."""
        by_node, fit = actors_by_node(self.nodes, self.needs), count_actors(self.nodes, self.needs)
        return {
            "actors": fit if self.actors is None else self.actors,
            "actors_that_fit": fit,
            "cpus_per_actor": self.needs.cpus,
            "gpus_per_actor": self.needs.gpus,
            "spans_nodes": self.needs.spans,
            "nodes": [
                {"name": n.name, "cpus": n.cpus, "gpus": n.gpus, "actors": by_node.get(n.id, 0)}
                for n in self.nodes
            ],
        }

    def lines(self) -> list[str]:
        """Return it as `--dry-run` prints it, a line per node."""
        by_node, fit = actors_by_node(self.nodes, self.needs), count_actors(self.nodes, self.needs)
        actors = fit if self.actors is None else self.actors
        lines = [f"teachers      {actors}, each with {self.needs}; {fit} fit now"]
        if self.needs.spans:
            return [*lines, "              each on the GPUs of several nodes"]
        return lines + [
            f"              {node.name} ({_offers(node)}): up to {by_node.get(node.id, 0)}"
            for node in self.nodes
        ]


def actor_needs(
    nodes: Sequence[ClusterNode], config: LabelConfig, settings: RaySettings
) -> ActorNeeds:
    """Return what one teacher takes: its GPUs, or cores where the cluster has no GPU.

    By default, a vLLM teacher has one GPU per tensor- and pipeline-parallel rank and its share of
    the cores of its node. Without GPUs it has as many cores as the smallest node: teachers that
    share cores slow each other down.

    Raises:
        SoftshardsError: no node has a CPU core, and the flags do not say what nodes to wait for.
    """
    nodes = [node for node in nodes if node.cpus >= 1]
    gpus, asked = settings.ray_gpus, settings.ray_cpus or settings.ray_gpus
    if not nodes and asked and settings.ray_wait:  # an autoscaler starts nodes for what is asked
        return ActorNeeds(cpus=settings.ray_cpus or 1.0, gpus=gpus or 0.0)
    if not nodes:
        raise SoftshardsError(
            "no node of the cluster offers a CPU core",
            hint="if it scales by itself, say what a teacher takes and how long to wait for nodes: "
            "--ray-gpus 1 --ray-wait 15",
        )
    if gpus is None:
        gpus = float(_parallel_ranks(config)) if any(node.gpus for node in nodes) else 0.0
    spans = gpus > 1 and gpus > max(node.gpus for node in nodes)
    if settings.ray_cpus is not None:
        return ActorNeeds(cpus=settings.ray_cpus, gpus=gpus, spans=spans)
    if not gpus:
        return ActorNeeds(cpus=float(min(int(node.cpus) for node in nodes)), gpus=0.0)
    shares = [node.cpus / node.gpus for node in nodes if node.gpus] or [1.0]
    return ActorNeeds(cpus=float(max(1, int(min(shares) * gpus))), gpus=gpus, spans=spans)


def actors_by_node(nodes: Sequence[ClusterNode], needs: ActorNeeds) -> dict[str, int]:
    """Return how many actors fit on each node, by its id; nodes without any are left out."""
    fits = {
        node.id: int(min(node.cpus // needs.cpus, node.gpus // needs.gpus if needs.gpus else 1e9))
        for node in nodes
    }
    return {id: count for id, count in fits.items() if count}


def count_actors(nodes: Sequence[ClusterNode], needs: ActorNeeds) -> int:
    """Return how many actors fit into the cluster."""
    if needs.spans:
        return int(sum(node.gpus for node in nodes) // needs.gpus)
    return sum(actors_by_node(nodes, needs).values())


def require_actors(
    nodes: Sequence[ClusterNode], needs: ActorNeeds, settings: RaySettings
) -> int | None:
    """Return how many actors to place; None for as many as fit, also when nodes join.

    Raises:
        SoftshardsError: the cluster has no room for them now, and waiting was not asked for.
    """
    fit, asked = count_actors(nodes, needs), settings.ray_actors
    if fit >= (asked or 1) or settings.ray_wait:
        return asked
    have = ", ".join(f"{node.name}: {_offers(node)}" for node in nodes)
    what = f"{asked} teachers need {needs} each" if (asked or 1) > 1 else f"a teacher needs {needs}"
    raise SoftshardsError(
        f"{what}, and the cluster has room for {fit} ({have})",
        hint="--ray-cpus and --ray-gpus say what one takes, --ray-actors how many there are; "
        "--ray-wait MINUTES waits for nodes to join",
    )


def describe_shortage(
    nodes: Sequence[ClusterNode], needs: ActorNeeds, free: Mapping[str, float]
) -> str:
    """Return what a teacher needs, and what is free; `free` is `ray.available_resources()`."""
    kinds = [("GPU", sum(node.gpus for node in nodes))] if needs.gpus else []
    kinds.append(("CPU core", sum(node.cpus for node in nodes)))
    offers = " and ".join(
        f"{free.get(noun.partition(' ')[0], 0.0):g} of {_count(total, noun)}"
        for noun, total in kinds
    )
    where = "" if needs.spans else " on one node"
    return f"each needs {needs}{where}; free: {offers} on {_count(len(nodes), 'node')}"


def _parallel_ranks(config: LabelConfig) -> int:
    if config.engine != "vllm":
        return 1
    given = engine_arguments(config.engine_arg)
    tensor = int(given.get("tensor_parallel_size", 1))
    return tensor * int(given.get("pipeline_parallel_size", 1))


def _offers(node: ClusterNode) -> str:
    cores = _count(node.cpus, "CPU core")
    return f"{_count(node.gpus, 'GPU')}, {cores}" if node.gpus else cores


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
