"""A Ray cluster of several nodes on this machine; each node is a raylet with its own processes."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import psutil

STORE_BYTES = 80 * 1024**2
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other processes of the machine may fill its memory
    "RAY_raylet_start_wait_time_s": "180",
    # A lost node is noticed within seconds.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
}
TRIES = 3


class RayNodes:
    """The nodes of a cluster; `nodes` are those beside the head."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self.nodes: list[Any] = []

    def add(self, cpus: int = 1) -> Any:
        """Start a node."""
        self.nodes.append(_retried(lambda: self._cluster.add_node(**_node(cpus))))
        return self.nodes[-1]

    def kill(self, node: Any, *, gracefully: bool = False) -> None:
        """End a node as if its machine was switched off, or gracefully: all get SIGTERM."""
        self._cluster.remove_node(node, allow_graceful=gracefully)
        self.nodes.remove(node)

    def teachers(self) -> list[psutil.Process]:
        """Return the processes of the teachers on these nodes."""
        found = []
        for node in [self._cluster.head_node, *self.nodes]:
            for raylet in node.all_processes["raylet"]:
                with suppress(psutil.NoSuchProcess):
                    found += psutil.Process(raylet.process.pid).children(recursive=True)
        return [each for each in found if _command(each).startswith("ray::TeacherActor")]


@contextmanager
def ray_nodes(*cpus: int, head: int = 0) -> Iterator[RayNodes]:
    """Yield a cluster: a head node with `head` cores, and one node for each number of cores."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ |= SETTINGS
    from ray.cluster_utils import Cluster

    ending = signal.getsignal(signal.SIGTERM)  # each node sets one of its own
    cluster: Any = Cluster()
    try:
        _retried(lambda: cluster.add_node(include_dashboard=False, no_monitor=True, **_node(head)))
        nodes = RayNodes(cluster)
        for count in cpus:
            nodes.add(count)
        yield nodes
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, ending)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _node(cpus: int) -> dict[str, Any]:
    # A raylet that knows the ports of its agents does not wait for files that name them: for 15 s,
    # which is too short on a busy machine.
    names = ("metrics_agent", "dashboard_agent_listen", "runtime_env_agent", "metrics_export")
    ports = {f"{name}_port": port for name, port in zip(names, _free_ports(len(names)))}
    settings = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": STORE_BYTES}
    return settings | ports | {"include_log_monitor": False}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def _all_ports_passed_on() -> Iterator[None]:
    """Pass on to each raylet also the one port that Ray keeps from it."""
    from ray._private import services

    start = services.start_ray_process

    def start_with_port(command: list[str], *rest: Any, **options: Any) -> Any:
        for agent in [part for part in command if part.startswith("--dashboard_agent_command=")]:
            port = re.search(r"--listen-port=(\d+)", agent)
            assert port is not None
            command = [*command, f"--dashboard_agent_listen_port={port[1]}"]
        return start(command, *rest, **options)

    with mock.patch.object(services, "start_ray_process", start_with_port):
        yield


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _retried(start: Any) -> Any:
    """Start a node; another process may have taken one of its ports in the meantime."""
    for left in reversed(range(TRIES)):
        try:
            with _all_ports_passed_on():
                return start()
        except Exception:
            if not left:
                raise
    raise AssertionError
