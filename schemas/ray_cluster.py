"""Ray: a cluster that runs already, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any

from schemas.errors import SoftshardsError, first_line
from schemas.redact import redacted

LOCAL = "local"
AUTO = "auto"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first (RFC 9113, 3.4): the preface, and SETTINGS without any."""
SETTINGS_FRAME = 4
STORE_BYTES = 100 * 1024**2
"""Size of the object store of our own Ray: only settings and small reports pass through it."""
STARTS = 5
"""Attempts to start our own Ray: it gives its processes 15 s, too few on a machine that is busy."""


def require_ray(extra: str) -> None:
    """Check that Ray is installed.

    Raises:
        SoftshardsError: it is not; the hint names the extra of this package that has it.
    """
    if find_spec("ray") is None:
        raise SoftshardsError("Ray is not installed", hint=f"pip install 'softshards[{extra}]'")


def prepare_ray(address: str) -> None:
    """Set Ray's environment variables; it reads some of them while it is imported."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0"}  # no telemetry
    if address == LOCAL:
        settings |= {
            # It listens on all interfaces, and a client can run code: require a token of our own.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_memory_monitor_refresh_ms": "0",  # it would kill actors for others' memory
        }
    os.environ |= settings


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster; yield the module `ray`. Its actors end with the context.

    Call `prepare_ray` first.

    Args:
        address: `HOST:PORT` of the head node; `auto` for RAY_ADDRESS, or else the cluster that
            this machine belongs to; `local` to start one of our own on this machine.

    Raises:
        SoftshardsError: there is no cluster, or it runs another version of Ray or Python.
    """
    if address != LOCAL:
        _require_reachable(os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address)
    import ray

    with tempfile.TemporaryDirectory(
        prefix="softshards-ray-", ignore_cleanup_errors=True
    ) as folder:
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == LOCAL:
            settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
            settings |= {"_temp_dir": folder}
            _start(ray, settings)
        else:
            try:
                ray.init(address=address, **settings)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise _refusal(address, error) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, settings: dict[str, Any]) -> None:
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=LOCAL, **settings)
            return
        except Exception as error:  # Ray raises that type itself
            ray.shutdown()
            if not left:
                raise SoftshardsError(
                    f"Ray could not be started on this machine: {first_line(error)}",
                    hint="try again when the machine is less busy",
                ) from error


def _require_reachable(address: str) -> None:
    """Check that a server of HTTP/2 listens at HOST:PORT: Ray itself would try for minutes."""
    if address == AUTO:
        return
    if "://" in address:
        raise SoftshardsError(
            f"{address} is an address of Ray's client, which may be cut off from the cluster",
            hint="run the command on a node of the cluster with --ray auto, or send it there with "
            "`ray job submit`",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SoftshardsError(
            f"--ray {address or 'without a value'} is no address",
            hint=f"pass HOST:PORT, {AUTO} or {LOCAL}",
        )
    try:
        place = (host.strip("[]"), int(port))
        with closing(socket.create_connection(place, CONNECT_SECONDS)) as connection:
            is_ray = "RAY_USE_TLS" in os.environ or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, first_line(error)) from error
    if not is_ray:
        raise _no_cluster(address, "something else listens there")


def _speaks_http2(connection: socket.socket) -> bool:
    """Return whether the other side answers as gRPC does, with its settings."""
    connection.settimeout(ANSWER_SECONDS)
    connection.sendall(GREETING)
    with connection.makefile("rb") as answer:
        return answer.read(4)[3:] == bytes([SETTINGS_FRAME])  # a length of 3 bytes, then the type


def _refusal(address: str, error: Exception) -> SoftshardsError:
    """Return the error for a server that is there, where Ray could not connect."""
    if address == AUTO:
        return _no_cluster(address, first_line(error))
    what = redacted(" ".join(str(error).split()))
    hint = (
        "if the cluster has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; see `ray status`"
    )
    if "Version mismatch" in what:
        hint = "install the same versions of Ray and Python here and on all nodes"
    return SoftshardsError(f"the cluster at {address} cannot be used: {what}", hint=hint)


def _no_cluster(address: str, reason: str) -> SoftshardsError:
    return SoftshardsError(
        f"no Ray cluster at {address}: {reason}",
        hint="start one with `ray start --head`, or on this machine alone with --ray local",
    )
