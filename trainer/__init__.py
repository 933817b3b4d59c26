"""Train students on a label set, with no teacher in memory (docs/trainer.md, docs/library.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer import losses
    from trainer.data.collate import collate
    from trainer.data.dataset import LabelDataset, ReaderState
    from trainer.data.mixture import open_mixture
    from trainer.ops import linear_label_logprobs

__all__ = [
    "LabelDataset",
    "ReaderState",
    "collate",
    "linear_label_logprobs",
    "losses",
    "open_mixture",
]

_MODULES = {
    "LabelDataset": "trainer.data.dataset",
    "ReaderState": "trainer.data.dataset",
    "collate": "trainer.data.collate",
    "linear_label_logprobs": "trainer.ops",
    "open_mixture": "trainer.data.mixture",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use: `import trainer` alone stays instant."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "losses":
        return import_module("trainer.losses")
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
