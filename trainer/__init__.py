"""Train students on a label set, with no teacher in memory (docs/trainer.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.dataset import LabelDataset
    from trainer.ops import linear_label_logprobs

__all__ = ["LabelDataset", "linear_label_logprobs"]


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use: `import trainer` alone stays instant."""
    if name == "LabelDataset":
        from trainer.dataset import LabelDataset

        return LabelDataset
    if name == "linear_label_logprobs":
        from trainer.ops import linear_label_logprobs

        return linear_label_logprobs
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
