"""The teacher's side of losses over all ids, as the student's head takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from trainer.ops import TeacherHead, linear_divergence
from trainer.student.head_settings import ExactLoss, HeadSettings


@dataclass(frozen=True, kw_only=True)
class ExactTarget:
    """A teacher's head, the same for all batches, and the losses to compute with it.

    Attributes:
        head: the teacher's, on the student's device. It is no parameter of the student: it gets no
            gradient, DDP does not broadcast it, and FSDP does not shard it.
        layer: index of the head's input in `Batch.states`.
        losses: in the order in which their values are returned.
    """

    head: TeacherHead
    layer: int
    losses: tuple[ExactLoss, ...]


def exact_divergences(
    target: ExactTarget,
    states: Tensor,
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    **settings: Unpack[HeadSettings],
) -> tuple[Tensor, ...]:
    """Return the value of each loss of a target, [n] in nats.

    Args:
        target: the teacher's head, and the losses.
        states: [n, layers, d_t], the teacher's, as of `Batch`.
        hidden: [n, d], the input of the student's head; weight, bias and low_rank are the head's.
        settings: of the student's head.
    """
    return tuple(
        linear_divergence(
            hidden,
            weight,
            states[:, target.layer],
            target.head,
            **loss._asdict(),
            bias=bias,
            low_rank=low_rank,
            scale=settings["scale"],
            softcap=settings["softcap"],
            chunk_bytes=settings["chunk_bytes"],
            valid_vocab=settings["valid_vocab"],
        )
        for loss in target.losses
    )
