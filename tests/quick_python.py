"""A stand-in for the interpreter, whose `-m MODULE` runs in a process forked from a `ForkServer`.

Commands start other commands by `sys.executable -m MODULE`, and each of these costs seconds of
imports. Where `sys.executable` is the stand-in, its process asks the one of the tests to start
MODULE with the same arguments, environment, folder and standard streams. It passes signals on and
ends as MODULE does; MODULE is killed if the stand-in is. Other programs run in the interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PRELOADS = {
    "accelerate": "tests.trainer.preload",
    "benchmarks": "tests.labeler.preload",
    "labeler": "tests.labeler.preload",
    "torch": "tests.trainer.preload",
    "trainer": "tests.trainer.preload",
    "trainer.evaluate.tasks.task_child": "tests.trainer.evaluate.tasks.preload",
}
"""The imports of a module, by its name or its package's."""
RUN_CHILD = "trainer.child_process"
MOST_BYTES = 1 << 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def quick_python(folder: Path) -> Iterator[Path]:
    """Yield the stand-in, a script in `folder`; it works until the block ends."""
    name = f"softshards-{os.getpid()}-{os.urandom(8).hex()}"
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" {name} "$0" "$@"\n')
    script.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield script
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    """Run a module for a stand-in, until either ends."""
    from tests.fork_server import Command, fork_server

    def tell_end(command: Command) -> None:
        code = command.wait()
        with contextlib.suppress(OSError):  # the stand-in was killed
            connection.send(str(code).encode())

    with connection:
        message, descriptors, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
        request = json.loads(message)
        preload = _preload(request["arguments"])
        if preload == PRELOADS["labeler"] and find_spec("vllm") is None:
            preload = PRELOADS["trainer"]
        assert preload is not None, "else the interpreter runs it"
        status = fork_server(preload).launch(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        command = Command(request["arguments"], status, None, None)
        threading.Thread(target=tell_end, args=(command,), daemon=True).start()
        with contextlib.suppress(OSError):
            while number := connection.recv(16):
                command.send_signal(int(number))
        command.kill()


def _preload(arguments: list[str]) -> str | None:
    """Return what to import for a command line after `-m`; None if it needs the interpreter."""
    module, *more = arguments
    if module == RUN_CHILD and more and not more[0].endswith(".py"):
        module = more[0]
    return PRELOADS.get(module) or PRELOADS.get(module.partition(".")[0])


def main() -> None:
    """Be the interpreter."""
    name, executable, *given = sys.argv[1:]
    words = given[sum(word in ("-P", "-u") for word in given[:1]) :]
    if words[:1] != ["-m"] or _preload(words[1:]) is None:
        os.execv(sys.executable, [sys.executable, *given])
    request = {
        "arguments": words[1:],
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "session": True,
        "executable": executable,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"\0{name}")
        for number in SIGNALS:
            signal.signal(number, lambda caught, _: connection.send(str(caught).encode()))
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        code = int(connection.recv(16) or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
