"""The viewer against clients that never finish, ask for too much, or name two hosts."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from labeler.labelsets.view import server as viewer_server
from labeler.labelsets.view.html_page import json_for_html, strict_json, write_page
from labeler.labelsets.view.page_data import open_viewer
from labeler.labelsets.view.server import make_server
from schemas import open_label_set
from tests.labeler.forging import reseal
from tests.schemas.sets import GOLDEN


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(viewer_server, "HEAD_SECONDS", 0.5)
    with make_server(open_viewer(GOLDEN)) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one.server_port
        one.shutdown()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(port: int, request: bytes) -> bytes:
    with connect(port) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        data = b""
        while block := client.recv(1 << 16):
            data += block
        return data


def status(port: int, request: str) -> int:
    return int(answer(port, request.replace("\n", "\r\n").encode()).split()[1])


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x"])
def test_half_open_connections_are_closed(port: int, begun: bytes) -> None:
    threads = threading.active_count()
    clients = [connect(port) for _ in range(10)]
    started = time.monotonic()
    for client in clients:
        client.sendall(begun)
    assert [client.recv(1) for client in clients] == [b""] * 10
    assert time.monotonic() - started < 10
    time.sleep(0.1)
    assert threading.active_count() <= threads + 1


def test_a_byte_from_time_to_time_does_not_hold_a_thread(port: int) -> None:
    started = time.monotonic()
    with connect(port) as client, contextlib.suppress(ConnectionError):
        while time.monotonic() - started < 10:
            client.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - started < 8


def test_connections_are_limited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_server, "HEAD_SECONDS", 5.0)
    clients = [connect(port) for _ in range(viewer_server.MOST_CONNECTIONS + 20)]
    time.sleep(0.5)
    assert threading.active_count() < viewer_server.MOST_CONNECTIONS + 20
    for client in clients:
        client.close()
    time.sleep(0.5)
    assert status(port, f"GET / HTTP/1.0\nHost: localhost:{port}\n\n") == 200


def test_large_requests_are_refused(port: int) -> None:
    host = f"Host: localhost:{port}\n"
    assert status(port, f"GET /?{'x' * 70_000} HTTP/1.1\n{host}\n") == 414
    many = "".join(f"X-{i}: {'y' * 2000}\n" for i in range(50))
    assert status(port, f"GET / HTTP/1.1\n{host}{many}\n") == 431
    assert status(port, f"GET / HTTP/1.1\n{host}X: {'y' * 60_000}\n\n") == 200


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\nHost: localhost:{port}\nHost: evil.example",
        "GET / HTTP/1.1\nHost: evil.example\nHost: localhost:{port}",
        "GET / HTTP/1.1\nHost: localhost:{port}\nHOST: localhost:{port}",
        "GET http://evil.example/ HTTP/1.1\nHost: localhost:{port}",
        "GET / HTTP/1.1\nHost: localhost:{port}, evil.example",
        "GET / HTTP/1.1\nHost: user@localhost:{port}",
        "GET / HTTP/1.1\nX: localhost:{port}",
        "GET / HTTP/1.1",
    ],
)
def test_other_hosts_are_refused(port: int, head: str) -> None:
    assert status(port, head.format(port=port) + "\n\n") == 403


def test_nothing_is_printed_for_clients_that_leave(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        client = connect(port)
        client.sendall(f"GET /api/start HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert b"Bad request" in answer(port, b"GARBAGE\x00\x1b[2J\r\n\r\n")
    time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_nan_is_shown(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "set")

    def spoil(rows: pa.Table) -> pa.Table:
        for name, value in (("mean_nll", np.nan), ("mean_entropy", np.inf), ("coverage", -np.inf)):
            index = rows.schema.get_field_index(name)
            field = rows.schema.field(index)
            rows = rows.set_column(index, field, pa.array([value] * len(rows), field.type))
        return rows

    forged = reseal(open_label_set(tmp_path / "set"), spoil).path
    viewer = open_viewer(forged)
    assert json.loads(strict_json(viewer.row(0)))["mean_nll"] is None
    write_page(tmp_path / "page.html", viewer, rows=2, seed=0)
    with make_server(viewer) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        for path in ("start", "rows", "row?number=0"):
            url = f"http://127.0.0.1:{one.server_port}/api/{path}"
            with urllib.request.urlopen(url, timeout=60) as found:
                assert "NaN" not in found.read().decode()
        one.shutdown()


def test_strict_json() -> None:
    value = {"a": [1, np.nan, {"b": (-np.inf, "NaN")}], "c": None, "d": 1.5}
    expected = {"a": [1, None, {"b": [None, "NaN"]}], "c": None, "d": 1.5}
    assert json.loads(strict_json(value)) == json.loads(json_for_html(value)) == expected
