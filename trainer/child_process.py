"""Python programs as processes that end when the one that started them does, even if it is killed.

`python -m trainer.child_process FILE|MODULE ARGS` runs a program that knows nothing of this. Its
standard input is a pipe that nothing is written to, and whose end is the end of its parent.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


def run_child(
    program: str | Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python file, or a module by its name, and return its exit code and output.

    Args:
        program: the file or module; the module runs as with `python -m`.
        arguments: of the program.
        environment: of the process; None for this one's.
    """
    with lifeline() as standard_input:
        return subprocess.run(
            [*child_command(program), *map(str, arguments)],
            stdin=standard_input,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )


def child_command(program: str | Path) -> list[str]:
    """Return the command that runs a program until the end of its standard input, at most."""
    return [sys.executable, "-m", __name__, str(program)]


@contextmanager
def lifeline() -> Iterator[int]:
    """Yield a child's standard input, which ends when this process does, or leaves the block."""
    read, write = os.pipe()  # no process inherits the other end
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def end_with_parent() -> None:
    """End this process at the end of its standard input, whatever it is doing."""
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> NoReturn:
    while os.read(0, 1 << 16):  # no lock of `sys.stdin`, which the interpreter takes when it ends
        pass
    os._exit(1)


def main() -> None:
    """Run the program that the command line names."""
    program, *arguments = sys.argv[1:]
    end_with_parent()
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
