"""Check that the nodes of a Ray cluster see what the processes of trials read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas import SoftshardsError, __version__
from schemas.errors import first_line

ANSWER_SECONDS = 300.0
"""Longest wait for a node; it starts a process first."""


def look(folder: str, cwd: str) -> tuple[str, bool, bool]:
    """Return the version of this package here, and whether two folders exist."""
    return __version__, Path(folder).is_dir(), Path(cwd).is_dir()


def require_nodes(ray: Any, folder: Path, cwd: Path) -> None:
    """Check each node that has a core.

    Args:
        ray: the module, connected.
        folder: of a trial, made by the sweep.
        cwd: the current folder, which relative paths start from.

    Raises:
        SoftshardsError: a node has another version, does not see a folder, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0.0) >= 1]
    looks = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        call = ray.remote(num_cpus=0, scheduling_strategy=there)(look).remote(str(folder), str(cwd))
        looks[call] = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
    ready, late = ray.wait(list(looks), num_returns=len(looks), timeout=ANSWER_SECONDS)
    for call in late:
        raise SoftshardsError(f"node {looks[call]} has not answered for {ANSWER_SECONDS:.0f} s")
    for call in ready:
        _require_node(ray, call, looks[call], folder, cwd)


def _require_node(ray: Any, call: Any, name: str, folder: Path, cwd: Path) -> None:
    same = "install the same version of softshards on all nodes"
    try:
        version, has_folder, has_cwd = ray.get(call)
    except ray.exceptions.RayError as error:
        raise SoftshardsError(
            f"node {name} cannot run softshards {__version__}: {first_line(error)}", hint=same
        ) from error
    if version != __version__:
        raise SoftshardsError(
            f"node {name} has softshards {version}, this process has {__version__}", hint=same
        )
    for path, is_there in ((folder, has_folder), (cwd, has_cwd)):
        if not is_there:
            raise SoftshardsError(
                f"node {name} does not see this folder",
                path=path,
                hint="use a file system that all nodes share, under the same path",
            )
