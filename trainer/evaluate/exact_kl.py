"""The KL to the teacher over all ids, measured where a held-out set has hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas import LabelSet
from schemas.file_names import FINAL
from trainer.data.teacher_states import TeacherStates, open_head, open_states
from trainer.student.exact_target import ExactTarget
from trainer.student.head_settings import ExactLoss
from trainer.student.student import Student


@dataclass(frozen=True, kw_only=True)
class ExactKl:
    """What the KL over all ids is measured with."""

    states: TeacherStates
    target: ExactTarget


def has_exact_kl(labels: LabelSet, student: Student) -> bool:
    """Return whether a set and a student allow the measurement.

    With a vocabulary map, the teacher has no probability for ids that only the student has.
    """
    record = labels.states
    return record is not None and FINAL in record.layers and student.vocab_map is None


def open_exact_kl(labels: LabelSet, student: Student, device: torch.device) -> ExactKl | None:
    """Read the teacher's head and the basis of its states; None where there is nothing to measure.

    Raises:
        LabelSetError: one is missing or altered.
    """
    if not has_exact_kl(labels, student):
        return None
    target = ExactTarget(head=open_head(labels, device), layer=0, losses=(ExactLoss("forward_kl"),))
    return ExactKl(states=open_states((labels,), (FINAL,), device), target=target)
