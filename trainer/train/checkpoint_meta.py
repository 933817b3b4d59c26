"""meta.json of a checkpoint. No torch: a sweep reads it, too."""

from __future__ import annotations

from pydantic import Field

from trainer.record import Record
from trainer.train.run_record import Facts, HeldOutRecord

CHECKPOINT_VERSION = 1


class CheckpointMeta(Record):
    """meta.json of a checkpoint: the run, and its state apart from tensors.

    Attributes:
        files: size of each file of tensors, in bytes.
        facts: all that decides what the run learns.
        reader: state of the reader (`ReaderState.to_dict`).
        seconds: spent in steps so far.
        evals: the held-out measurements so far.
        packed: documents are packed; else padded.
    """

    version: int = CHECKPOINT_VERSION
    step: int
    files: dict[str, int] = Field(default_factory=dict)
    facts: Facts
    reader: dict[str, int]
    total_steps: int
    tokens: int
    seconds: float
    evals: list[HeldOutRecord]
    packed: bool = True
