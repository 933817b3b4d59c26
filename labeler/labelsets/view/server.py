"""The viewer's server: one page and a small JSON API, for this machine only."""

from __future__ import annotations

import functools
import io
import json
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from labeler.console import out
from labeler.labelsets.view.html_page import server_page, strict_json
from labeler.labelsets.view.page_data import RowContent, Viewer
from labeler.labelsets.view.row_list import RowPage, parse_query
from schemas import LabelSetError, SoftshardsError

ADDRESS = "127.0.0.1"
LOCAL_NAMES = (ADDRESS, "localhost")
MOST_ROWS = 500
"""Largest number of rows per request."""
MOST_CONNECTIONS = 64
"""A browser opens six."""
HEAD_SECONDS = 10.0
"""Time for a request to arrive, or for an open connection to send the next one."""
SEND_SECONDS = 60.0
MOST_BYTES, BLOCK = 96 << 10, 1 << 16
"""Bytes of a request: its first line may have 64 KB."""
READING = threading.Semaphore(4)
"""Requests that read the set at the same time."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_server(viewer: Viewer, port: int = 0) -> ThreadingHTTPServer:
    """Return a server bound to 127.0.0.1, not yet serving; port 0 takes a free one.

    Raises:
        SoftshardsError: the port is taken.
    """
    handler = functools.partial(_Handler, viewer, server_page())
    try:
        return _Server((ADDRESS, port), handler)
    except OSError as error:
        raise SoftshardsError(
            f"port {port} cannot be used: {error.strerror}",
            hint="give another --port, or none for a free one",
        ) from error


def serve(viewer: Viewer, *, port: int, open_browser: bool, as_json: bool) -> None:
    """Serve until interrupted.

    Raises:
        SoftshardsError: the port is taken.
    """
    with make_server(viewer, port) as server:
        url = f"http://{ADDRESS}:{server.server_port}/"
        if as_json:
            print(json.dumps({"url": url}), flush=True)
        else:
            out.print(f"{viewer.labels.place}: {viewer.labels.rows} rows at {url} (Ctrl-C ends it)")
        if open_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            if not as_json:
                out.print("stopped")


class _Server(ThreadingHTTPServer):
    """Has a thread per connection, up to a limit."""

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, or close it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection until it is closed."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a fault of this program; say nothing of clients that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _RequestReader(io.RawIOBase):
    """Reads requests from a connection; each must arrive as a whole, in time.

    A timeout per read is not enough: a client may send a byte from time to time.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.start_request()

    def start_request(self) -> None:
        """Allow the next request its time and size."""
        self._left, self._deadline = MOST_BYTES, time.monotonic() + HEAD_SECONDS

    @property
    def is_exhausted(self) -> bool:
        """Whether the request is too large; its end was not read."""
        return self._left <= 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what has arrived, 0 at the end or the limit.

        Raises:
            TimeoutError: the request takes too long.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the request takes too long")
        self._connection.settimeout(seconds)
        count = self._connection.recv_into(buffer[: max(0, self._left)]) if self._left > 0 else 0
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers one request. No request writes anything."""

    protocol_version = "HTTP/1.1"
    server_version = "softshards"
    sys_version = ""

    def __init__(self, viewer: Viewer, page: str, *rest: Any) -> None:
        self._viewer, self._page = viewer, page
        super().__init__(*rest)

    def setup(self) -> None:
        """Read through the limits."""
        super().setup()
        self._requests = _RequestReader(self.connection)
        self.rfile.close()
        self.rfile = io.BufferedReader(self._requests, BLOCK)

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        self._requests.start_request()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Send the page, or the JSON of a path under /api/."""
        if self._requests.is_exhausted:
            self.close_connection = True
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._send_json({"error": "the request is too large"}, too_large)
            return
        if not self._is_local():
            # DNS rebinding: a name that points here would let its site read the set.
            self._send_json({"error": "served to this machine only"}, HTTPStatus.FORBIDDEN)
            return
        url = urlsplit(self.path)
        if url.path == "/":
            self._send(self._page.encode(), "text/html; charset=utf-8", HTTPStatus.OK)
            return
        answer = ANSWERS.get(url.path)
        if answer is None:
            self._send_json({"error": f"no such page: {url.path}"}, HTTPStatus.NOT_FOUND)
            return
        try:
            parameters = dict(parse_qsl(url.query, keep_blank_values=True))
            with READING:
                content = answer(self._viewer, parameters)
        except LabelSetError as error:  # a damaged shard
            self._send_json({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except SoftshardsError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        else:
            self._send_json(content, HTTPStatus.OK)

    def _reject_method(self) -> None:
        self.close_connection = True  # a body may follow, and it is not read
        self._send_json({"error": "only GET is answered"}, HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _reject_method

    def _is_local(self) -> bool:
        port = self.connection.getsockname()[1]
        hosts = self.headers.get_all("Host", [])
        known = {f"{name}:{port}" for name in LOCAL_NAMES}
        # Of two hosts, a proxy may check the other one; a whole URL as path names a third.
        return len(hosts) == 1 and hosts[0] in known and self.path.startswith("/")

    def _send_json(self, content: Mapping[str, object], status: HTTPStatus) -> None:
        self._send(strict_json(content).encode("ascii"), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus) -> None:
        self.connection.settimeout(SEND_SECONDS)
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: a line per request would bury the messages for the user."""


def _start(viewer: Viewer, _: dict[str, str]) -> dict[str, object]:
    all_ids = range(len(viewer.vocabulary.texts))
    return {"facts": viewer.facts(), "vocabulary": viewer.vocabulary.shown(all_ids)}


def _rows(viewer: Viewer, parameters: dict[str, str]) -> RowPage:
    offset, limit = _natural(parameters, "offset", 0), _natural(parameters, "limit", 100)
    return viewer.listing.page(parse_query(parameters), offset, min(limit, MOST_ROWS))


def _row(viewer: Viewer, parameters: dict[str, str]) -> RowContent:
    return viewer.row(_natural(parameters, "number", 0))


def _natural(parameters: dict[str, str], name: str, default: int) -> int:
    """Read a parameter that is a whole number, 0 or more."""
    text = parameters.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise SoftshardsError(f"{name} is {text!r}", hint="give a whole number")
    return int(text)


Answer = Callable[[Viewer, dict[str, str]], Mapping[str, object]]
ANSWERS: dict[str, Answer] = {"/api/start": _start, "/api/rows": _rows, "/api/row": _row}
