"""A proxy before the tests' S3 service, which fails in the ways that networks and stores do."""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from s3fs import S3FileSystem

FAULTS = ("error", "delay", "truncated", "lost", "cut")
BUSY = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>again</Message></Error>"


@dataclass
class Faults:
    """Which requests fail, and how.

    Attributes:
        rates: probability of each fault. error: 500 or 503, nothing is done. delay: half a second.
            truncated: the answer ends in the middle. lost: the request is carried out, its answer
            never comes. cut: the connection ends in the middle of the request.
        methods: HTTP methods that fail.
        dropped: headers of requests that the store does not know, in lower case.
        counts: faults so far, and all `requests`, by method.
    """

    rates: dict[str, float] = field(default_factory=dict)
    methods: tuple[str, ...] = ("GET", "PUT", "POST", "DELETE", "HEAD")
    dropped: tuple[str, ...] = ()
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, method: str) -> str | None:
        """Return the fault of the next request, if any."""
        with self.lock:
            self.counts[method] += 1
            thrown, chosen = self.dice.random(), None
            for fault in FAULTS:
                thrown -= self.rates.get(fault, 0.0)
                if thrown < 0:
                    chosen = fault
                    break
            if chosen is None or method not in self.methods:
                return None
            self.counts[chosen] += 1
            return chosen


@contextmanager
def faulty_store(faults: Faults) -> Iterator[None]:
    """Put the proxy before the store at `AWS_ENDPOINT_URL`, for this process and its children."""
    upstream = os.environ["AWS_ENDPOINT_URL"]

    class Handler(_Handler):
        pass

    Handler.faults, Handler.upstream = faults, urlsplit(upstream).netloc
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = upstream
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    upstream: str

    def handle_any(self) -> None:
        fault = self.faults.draw(self.command)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self._chunks() if self.headers.get("Transfer-Encoding") else self.rfile.read(length)
        if fault == "error":
            slow = self.faults.dice.random() < 0.5
            content = BUSY % (b"SlowDown" if slow else b"InternalError")
            self._answer(503 if slow else 500, [], b"" if self.command == "HEAD" else content)
            return
        if fault == "delay":
            time.sleep(0.5)
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        left_out = self.faults.dropped + HOP
        headers = {n: v for n, v in self.headers.items() if n.lower() not in left_out}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "lost":
            self._hang_up()
            return
        self._answer(answer.status, answer.getheaders(), data, cut_off=fault == "truncated")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut_off: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut_off else data)
        if cut_off and data:
            self._hang_up()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


HOP = ("connection", "transfer-encoding", "content-length", "keep-alive", "expect")
