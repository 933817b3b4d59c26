"""A minimal local web server for a folder: no ETags, and byte ranges only where asked."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _Ranges(_Quiet):
    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, asked.groups())
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last + 1 - first)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def served(folder: Path, *, ranges: bool = False) -> Iterator[str]:
    """Serve `folder` while the context lasts; yield its URL."""
    handler = functools.partial(_Ranges if ranges else _Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
