"""`python -m MODULE ...` in processes forked from one that has done the imports.

Most of a command's start is imports: where vLLM is used, ten seconds of processor time. A
`ForkServer` does them once and forks a process per command. Such a process has its own arguments,
environment, folder and files, and can be killed. It differs from a fresh one in the modules that
are loaded already, so it does not test what a command imports; `tests/test_import_rules.py` does
that, in fresh interpreters.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
MOST_BYTES = 1 << 20
"""Size limit of a request: arguments and environment of one command."""


class Command:
    """A running command, with the methods of `subprocess.Popen` that the tests need.

    Its output goes to files, so a command that nobody reads from never waits.
    """

    def __init__(
        self, arguments: list[str], status: int, out: IO[Any] | None, err: IO[Any] | None
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._status, self._out, self._err = os.fdopen(status, "rb", buffering=0), out, err
        self._lock = threading.Lock()
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal, once the command has ended."""
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what was written to stdout and stderr."""
        self.wait(timeout)
        return _content(self._out), _content(self._err)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the command to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the command at once."""
        self.send_signal(signal.SIGKILL)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(self._status.readline())
        return self.returncode


class ForkServer:
    """A process that imports `preload`, a module, and then starts commands."""

    def __init__(self, preload: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), preload]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # tests run side by side
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(
        self,
        *arguments: object,
        input: str = "",
        environment: dict[str, str] | None = None,
        stderr: IO[Any] | None = None,
        start_new_session: bool = False,
    ) -> Command:
        """Start `python -m ARGUMENTS` with the environment and in the folder of this process.

        Args:
            arguments: a module's name and its arguments.
            input: what the command reads from stdin.
            environment: variables to add. What a library read at its import stays as it was.
            stderr: a file for its messages; without one, `communicate` returns them.
            start_new_session: make the command the leader of a process group.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": os.environ | (environment or {}),
            "folder": str(Path.cwd()),
            "session": start_new_session,
            "executable": sys.executable,
        }
        with tempfile.TemporaryFile() as given:
            given.write(input.encode())
            given.seek(0)
            out, err = tempfile.TemporaryFile(), stderr or tempfile.TemporaryFile()  # noqa: SIM115
            status = self.launch(request, [given.fileno(), out.fileno(), err.fileno()])
        return Command(request["arguments"], status, out, err)

    def launch(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Start a command with these standard streams; return a pipe that tells of its end."""
        message = json.dumps(request).encode()
        assert len(message) < MOST_BYTES
        status, theirs = os.pipe()
        socket.send_fds(self._channel, [message], [*descriptors, theirs])
        os.close(theirs)
        return status

    def run(
        self, *arguments: object, input: str = "", timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m ARGUMENTS` to its end; see `start`."""
        command = self.start(*arguments, input=input)
        try:
            out, err = command.communicate(timeout)
        finally:
            command.kill()
        return subprocess.CompletedProcess(command.args, command.wait(), out, err)

    def close(self) -> None:
        """End the server; commands that still run are left to end by themselves."""
        self._channel.close()
        self._process.wait()


_servers: dict[str, ForkServer] = {}
_starting = threading.Lock()


def fork_server(preload: str) -> ForkServer:
    """Return this process's server that has imported `preload`, started at its first use."""
    with _starting:
        if preload not in _servers:
            _servers[preload] = ForkServer(preload)
            atexit.register(_servers[preload].close)
        return _servers[preload]


def _content(file: IO[Any] | None) -> str:
    if file is None:
        return ""
    with contextlib.suppress(ValueError):  # closed by whoever gave it
        file.seek(0)
        content = file.read()
        return content.decode() if isinstance(content, bytes) else str(content)
    return ""


def _serve(channel: socket.socket) -> list[str]:
    """Fork a process for each request; return, in that process alone, its arguments."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
        if not message:
            os._exit(0)
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(ChildProcessError):  # those that ended meanwhile
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        channel.close()
        request, status = json.loads(message), descriptors.pop()
        # The command's parent: a server cannot wait for a process and take requests at once.
        if pid := os.fork():
            os.write(status, f"{pid}\n".encode())
            for descriptor in descriptors:
                os.close(descriptor)
            _, code = os.waitpid(pid, 0)
            os.write(status, f"{os.waitstatus_to_exitcode(code)}\n".encode())
            os._exit(0)
        os.close(status)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        if request["session"]:
            os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        tempfile.tempdir = None  # TMPDIR may be another one
        sys.executable = request["executable"]
        return list(request["arguments"])


def main() -> None:
    """Import and serve; in the process of a command, run it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    channel = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    importlib.import_module(sys.argv[2])
    gc.collect()
    gc.freeze()  # neither scanned nor copied in each process
    gc.enable()
    sys.argv = _serve(channel)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if the tests ignore it
    _end(_run(sys.argv[0]))


def _run(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End this process, without the seconds it takes to take so many modules down."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
