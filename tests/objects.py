"""An S3 service on this machine, and label sets in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

BUCKET = "s3://bucket"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""A process of its own, that ends with this one: vLLM cannot be started where Flask is loaded."""


@contextmanager
def object_store() -> Iterator[None]:
    """`BUCKET` is there. Once a process: fsspec keeps its connection."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for each request
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    port = int(server.stdout.readline())
    environment = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        bucket().mkdir(BUCKET)
        yield
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def bucket() -> Any:
    """The store's filesystem, which remembers nothing."""
    return fsspec.filesystem("s3", skip_instance_cache=True)


def upload(path: Path, name: str) -> str:
    """Copy a folder or file into the store; return its URL."""
    url = f"{BUCKET}/{name}"
    bucket().put(str(path) + ("/" if path.is_dir() else ""), url, recursive=path.is_dir())
    return url
