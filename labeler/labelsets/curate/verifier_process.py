"""The worker process of a verifier. It imports little, because workers die and restart."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

Function = Callable[[dict[str, object]], object]
"""A user's verifier: from a row's columns to true, false or a number."""

_loaded: Function


def start_worker(target: str) -> None:
    """Load the function; send output to standard error, and leave Ctrl-C to the parent."""
    global _loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    _loaded = load_function(target)


def call_function(row: dict[str, object]) -> object:
    """Return the function's value for a row."""
    return _loaded(row)


def load_function(target: str) -> Function:
    """Return the function that `module:function` names; the working folder is searched, too.

    Raises:
        Exception: the module cannot be imported, or has no such function.
    """
    module, _, name = target.partition(":")
    search_working_folder()
    function: Function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{name} is not a function")
    return function


def search_working_folder() -> None:
    """Add the working folder to the import path, as `python -m` does."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
