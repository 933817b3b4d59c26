"""A run under way: what it is, and where it stands."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from accelerate import Accelerator

from schemas import LabelSet, open_label_set
from trainer.data.dataset import LabelDataset, Pack, ReaderState
from trainer.data.mixture import Part
from trainer.losses.objective import objective_of
from trainer.student.student import Student
from trainer.train.run_record import Facts
from trainer.train.train_config import TrainConfig

LOG = "log.jsonl"
EVAL_LOG = "eval.jsonl"


@dataclass(kw_only=True)
class Run:
    """A run; the fields from `reader` on are where it stands.

    Attributes:
        parts: the label set, and those mixed in.
        model: the student as Accelerate wrapped it (DDP, FSDP2, or not at all).
        tokens: how many were trained on. seconds: spent in steps.
        evals: the measurements on --eval-labels so far, each with its step.
    """

    config: TrainConfig
    parts: tuple[Part, ...]
    accelerator: Accelerator
    student: Student
    model: Any
    optimizer: Any
    scheduler: Any
    facts: Facts
    total_steps: int
    reader: ReaderState
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evals: list[dict[str, float]] = field(default_factory=list)

    @property
    def labels(self) -> LabelSet:
        """The set whose tokenizer and vocabulary all others have."""
        return self.parts[0].labels

    @cached_property
    def held_out(self) -> LabelSet:
        """The set of --eval-labels, opened once: behind a URL, opening copies files."""
        assert self.config.eval_labels is not None
        return open_label_set(self.config.eval_labels)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return bool(self.accelerator.is_main_process)

    def packs(self) -> Generator[Pack]:
        """All packs that are left, of all ranks."""
        return open_dataset(self.config, self.parts, self.student, self.reader).__iter__()


def open_dataset(
    config: TrainConfig, parts: tuple[Part, ...], student: Student, state: ReaderState
) -> LabelDataset:
    """The packs of a run from `state` on."""
    return LabelDataset(
        parts,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
        window=config.window,
        epochs=config.epochs,
        state=state,
        vocab_map=student.vocab_map,
        drawn=objective_of(config).needs_draws,
    )
