"""The viewer's server: one page and a small JSON API, for this machine only."""

from __future__ import annotations

import functools
import json
import webbrowser
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from labeler.console import out
from labeler.labelsets.view.html_page import server_page
from labeler.labelsets.view.page_data import RowContent, Viewer
from labeler.labelsets.view.row_list import RowPage, parse_query
from schemas import LabelSetError, SoftshardsError

ADDRESS = "127.0.0.1"
LOCAL_NAMES = (ADDRESS, "localhost")
MOST_ROWS = 500
"""Largest number of rows per request."""
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
        return ThreadingHTTPServer((ADDRESS, port), handler)
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
            out.print(f"{viewer.labels.path}: {viewer.labels.rows} rows at {url} (Ctrl-C ends it)")
        if open_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            if not as_json:
                out.print("stopped")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request. No request writes anything."""

    protocol_version = "HTTP/1.1"
    server_version = "softshards"
    sys_version = ""

    def __init__(self, viewer: Viewer, page: str, *rest: Any) -> None:
        self._viewer, self._page = viewer, page
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Send the page, or the JSON of a path under /api/."""
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
            content = answer(self._viewer, dict(parse_qsl(url.query, keep_blank_values=True)))
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
        return self.headers.get("Host") in {f"{name}:{port}" for name in LOCAL_NAMES}

    def _send_json(self, content: Mapping[str, object], status: HTTPStatus) -> None:
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
        self._send(body, "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus) -> None:
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
