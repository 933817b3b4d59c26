"""The side of a verifier that runs in a worker process. Few imports: workers die and start anew."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_loaded: Callable[[dict[str, Any]], Any]


def prepare(target: str) -> None:
    """Make a worker ready: its output must not mix with ours, and Ctrl-C is for the parent."""
    global _loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    _loaded = load_function(target)


def call(row: dict[str, Any]) -> Any:
    """What the function says of a row."""
    return _loaded(row)


def load_function(target: str) -> Callable[[dict[str, Any]], Any]:
    """The function that `module:function` names; modules are also looked for in the working folder.

    Raises:
        Exception: whatever the import of a user's module raises, or it has no such function.
    """
    module, _, name = target.partition(":")
    search_here()
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{name} is no function")
    return found


def search_here() -> None:
    """Let modules be found in the working folder, as `python -m` does."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
