"""An S3 service on this machine, and label sets in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer

BUCKET = "s3://bucket"


@contextmanager
def object_store() -> Iterator[None]:
    """`BUCKET` is there. Once a process: fsspec keeps its connection."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        bucket().mkdir(BUCKET)
        yield
    finally:
        server.stop()
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
