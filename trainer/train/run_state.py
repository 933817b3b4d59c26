"""A run in progress: its inputs, and its state."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from accelerate.accelerator import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from schemas import LabelSet
from trainer.data.dataset import LabelDataset, Pack, ReaderState
from trainer.data.mixture import Part
from trainer.losses.objective import Objective
from trainer.student.student import Student
from trainer.train.run_record import HeldOutRecord, RunInputs
from trainer.train.train_config import TrainConfig


@dataclass(kw_only=True)
class Run:
    """A run; the fields from `reader` on are its state.

    Attributes:
        model: the student as Accelerate wrapped it (DDP, FSDP2, or not at all).
        tokens: trained on so far. seconds: spent in steps so far.
        weight: sum of the weights of the last step's labels.
        evals: the measurements on --eval-labels so far.
    """

    inputs: RunInputs
    accelerator: Accelerator
    student: Student
    model: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    total_steps: int
    reader: ReaderState
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    weight: float = 0.0
    evals: list[HeldOutRecord] = field(default_factory=list)

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.inputs.config

    @property
    def objective(self) -> Objective:
        """The losses and label weights."""
        return self.inputs.config.objective

    @property
    def labels(self) -> LabelSet:
        """The set whose tokenizer and vocabulary all others have."""
        return self.inputs.labels

    @property
    def is_main(self) -> bool:
        """True in the process that writes and prints."""
        return bool(self.accelerator.is_main_process)

    @property
    def is_packed(self) -> bool:
        """True if documents are packed, False if they are padded."""
        return self.student.attention != "padded"

    def packs(self) -> Generator[Pack]:
        """Yield the remaining packs of all ranks."""
        dataset = open_dataset(self.config, self.inputs.parts, self.student, self.reader)
        return dataset.__iter__()


def open_dataset(
    config: TrainConfig, parts: tuple[Part, ...], student: Student, state: ReaderState
) -> LabelDataset:
    """Return the packs of a run from `state` on."""
    return LabelDataset(
        parts,
        pack_tokens=config.pack_tokens,
        padded=student.attention == "padded",
        seed=config.seed,
        window=config.window,
        epochs=config.epochs,
        state=state,
        vocab_map=student.vocab_map,
        drawn=config.objective.needs_draws,
    )
