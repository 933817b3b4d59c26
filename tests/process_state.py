"""What one test file could leave behind for the next in the same process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

LIBRARIES = (
    *("VLLM_", "TORCH", "PYTORCH", "_TORCH", "OMP_", "KMP_", "NUMEXPR_", "TRITON_", "TILELANG_"),
    *("AITER_", "LD_", "LOCAL_WORLD_SIZE", "PYTEST_", "RAY_", "_RJEM_", "TOKENIZERS_"),
)
"""Beginnings of environment variables that libraries set, most when they are imported."""


def process_state() -> dict[str, object]:
    """Return what is global in this process, by names for messages."""
    state: dict[str, object] = {
        f"os.environ[{name!r}]": value
        for name, value in os.environ.items()
        if not name.startswith(LIBRARIES)
    }
    state |= {
        "the current folder": Path.cwd(),
        "sys.path": [path for path in sys.path if not _is_of_library(path)],
        "the level of logging": logging.root.level,
        "the handler of SIGINT": signal.getsignal(signal.SIGINT),
        "the handler of SIGTERM": signal.getsignal(signal.SIGTERM),
    }
    return state | _torch_state() | _command_state()


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return a line for each thing that is not what it was; modules may have been imported."""
    variables = {name for name in before.keys() ^ after.keys() if name.startswith("os.environ")}
    names = (before.keys() & after.keys()) | variables
    return [
        f"{name}: was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]


def _is_of_library(path: str) -> bool:
    """Check for folders that libraries add to those of modules when they are imported."""
    return "site-packages" in path or path.endswith("huggingface/modules")


def _torch_state() -> dict[str, object]:
    if "torch" not in sys.modules:
        return {}
    import torch

    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's gradients": torch.is_grad_enabled(),
    }


def _command_state() -> dict[str, object]:
    """Return the settings files that the commands read; `--config` sets them for one call."""
    loaded = (name for name in ("labeler.cli", "trainer.cli") if name in sys.modules)
    return {f"{name}.app.config": sys.modules[name].app.config for name in loaded}
