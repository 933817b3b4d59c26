"""A run in progress: its inputs, and its state."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from accelerate.accelerator import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from schemas import LabelSet
from trainer.data.dataset import LabelDataset, PackSize, ReaderState
from trainer.data.exchange import Exchange
from trainer.data.mixture import Part
from trainer.data.teacher_states import TeacherStates
from trainer.evaluate.exact_kl import ExactKl
from trainer.losses.objective import Objective
from trainer.student.exact_target import ExactTarget
from trainer.student.student import Student
from trainer.train.run_record import HeldOutRecord, RunInputs
from trainer.train.train_config import TrainConfig


@dataclass(kw_only=True)
class Run:
    """A run; the fields from `reader` on are its state.

    Attributes:
        model: the student as Accelerate wrapped it (DDP, FSDP2, or not at all).
        states: makes the teacher's hidden states of a batch, where a loss reads them.
        exact: the teacher's side of losses over all ids, where there are any.
        held_out_kl: measures the KL over all ids, where the held-out set has hidden states.
        tokens: trained on so far. seconds: spent in steps so far.
        exchange: the processes, to share the reading of the label sets; None for one alone.
        held_out_exchange: likewise, to share the held-out set at the same time.
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
    exchange: Exchange | None
    held_out_exchange: Exchange | None
    states: TeacherStates | None
    exact: ExactTarget | None
    held_out_kl: ExactKl | None
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
    def has_projections(self) -> bool:
        """True if projections of the student's hidden states are trained, too."""
        matching = self.student.matching
        return matching is not None and len(matching.projections) > 0

    @property
    def is_packed(self) -> bool:
        """True if documents are packed, False if they are padded."""
        return self.student.attention != "padded"

    def packs(self) -> Generator[PackSize]:
        """Yield the remaining packs of all ranks, those of this one with their rows."""
        return open_dataset(
            self.config, self.inputs.parts, self.student, self.reader, self.exchange
        ).all_packs()


def open_dataset(
    config: TrainConfig,
    parts: tuple[Part, ...],
    student: Student,
    state: ReaderState,
    exchange: Exchange | None = None,
) -> LabelDataset:
    """Return the packs of a run from `state` on; the processes of `exchange` share the reading."""
    return LabelDataset(
        parts,
        pack_tokens=config.pack_tokens,
        padded=student.attention == "padded",
        seed=config.seed,
        window=config.window,
        epochs=config.epochs,
        exchange=exchange,
        state=state,
        vocab_map=student.vocab_map,
        drawn=config.objective.needs_draws,
        states=student.teacher_layers,
        temperature=config.objective.tail_temperature,
    )
