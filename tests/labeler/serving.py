"""A real vLLM server on this machine, and a proxy before it that drops requests on purpose."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fork_server import Command, fork_server

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process for the engine and its worker
}


PATIENCE = 240.0
"""Seconds after which a test gives up waiting; no test passes or fails by them otherwise."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """A vLLM server of `model`, which can be killed and started again at the same address."""

    model: Path
    log: Path
    port: int = field(default_factory=free_port)
    process: Command | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, *more: str) -> None:
        command = ["vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--model", str(self.model)]
        command += ["--max-model-len", "128", "--dtype", "float32", "--enforce-eager"]
        command += ["--kv-cache-memory-bytes", str(1 << 28)]
        with self.log.open("wb") as log:
            self.process = fork_server("tests.labeler.preload").start(
                *command, *more, environment=ENVIRONMENT, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while not self._is_healthy():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill -9 the server with the engine's process."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as got:
                return bool(got.status == 200)
        except OSError:
            return False


@dataclass
class Proxy:
    """Passes requests on to `port`, but answers some of them with the status that `fault` returns.

    Attributes:
        port: of the server.
        fault: called with the number of a completion request and its body; 0 passes it on.
        url: its own address.
        completions: completion requests seen so far.
        most: most of them in flight at once. A request counts from its arrival until just before
            its answer is sent, so the client may have more in flight, never fewer.
    """

    port: int
    fault: Callable[[int, bytes], int]
    url: str = ""
    completions: int = 0
    most: int = 0


@contextlib.contextmanager
def proxy(
    port: int, fault: Callable[[int, bytes], int], *, gather: int = 1, gather_from: int = 0
) -> Iterator[Proxy]:
    """Run a proxy before the server at `port`.

    Args:
        port: of the server.
        fault: as in `Proxy`.
        gather: answer no completion request numbered `gather_from` or higher before so many of
            them have been in flight at once, however slow the machine is.
        gather_from: see `gather`.
    """
    state = Proxy(port=port, fault=fault)
    lock, gathered = threading.Lock(), threading.Event()
    in_flight = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(*self._forward("GET", b""))

        def do_POST(self) -> None:
            nonlocal in_flight
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number = state.completions
                state.completions += 1
                in_flight += 1
                state.most = max(state.most, in_flight)
                if state.most >= gather:
                    gathered.set()
            try:
                if status := state.fault(number, body):
                    answer = status, b'{"error": {"message": "lost on purpose"}}'
                else:
                    answer = self._forward("POST", body)
                if number >= gather_from:
                    gathered.wait(PATIENCE)
            finally:
                with lock:
                    in_flight -= 1
            self._reply(*answer)

        def _forward(self, method: str, body: bytes) -> tuple[int, bytes]:
            server = http.client.HTTPConnection("127.0.0.1", port)
            server.request(method, self.path, body, {"Content-Type": "application/json"})
            answer = server.getresponse()
            return answer.status, answer.read()

        def _reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        state.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield state
        listener.shutdown()
