"""The process in which a verifier's function runs. It imports little, because it dies and restarts.

Rows come in a file, their sizes on standard input, and verdicts leave through a pipe that the
function does not know. All that the function prints goes where the parent reads it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from labeler.labelsets.curate.verdict import Verdict, as_verdict, describe, failed

Function = Callable[[dict[str, object]], object]
"""A user's verifier: from a row's columns to true, false or a number."""
SIZE_BYTES = 8
"""Bytes of a row's size on standard input."""


def serve(target: str, rows: int, answers: int) -> None:
    """Verify rows until standard input ends.

    Args:
        target: `module:function`.
        rows: file descriptor of the file with the row.
        answers: file descriptor for one line of JSON per row, after one on whether the function
            could be loaded.
    """
    sizes = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for own in (rows, answers):
        os.set_inheritable(own, False)
    here, process = Path.cwd(), os.getpid()
    function: Function | None = None
    try:
        function = load_function(target)
        loaded = Verdict(None, True)
    except BaseException as error:  # the module is the user's
        loaded = failed(describe(error))
    _answer(answers, loaded)
    while function is not None and (size := os.read(sizes, SIZE_BYTES)):
        row = json.loads(_read(rows, int.from_bytes(size, "big")))
        try:
            verdict = as_verdict(function(row))
        except BaseException as error:  # sys.exit, too
            verdict = failed(describe(error))
        if os.getpid() != process:  # the function has forked, and this is the child
            os._exit(0)
        # What a function sets would change its verdict on the next row.
        signal.alarm(0)
        os.chdir(here)
        _answer(answers, verdict)


def _read(file: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.pread(file, size - len(data), len(data))):
        data += more
    return data


def _answer(pipe: int, verdict: Verdict) -> None:
    line = json.dumps([verdict.number, verdict.passed, verdict.fault])
    os.write(pipe, line.encode() + b"\n")


def load_function(target: str) -> Function:
    """Return the function that `module:function` names; the working folder is searched, too.

    Raises:
        Exception: the module cannot be imported, or has no such function.
    """
    module, _, name = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` does
        sys.path.insert(0, here)
    function: Function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{name} is not a function")
    return function


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
