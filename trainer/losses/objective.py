"""The objective of a run: a weighted sum of losses, and how much each label counts. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from schemas.arrow import SPAN_KINDS
from trainer.losses.loss_table import LOSSES, StateLoss
from trainer.student.head_settings import ExactLoss

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss and its weight over the steps of a run, from `start` to `stop`."""

    name: str
    start: float
    stop: float
    shape: Shape = "constant"

    def weight(self, step: int, total: int) -> float:
        """Return the weight at step 0..total - 1: `start` at the first, `stop` at the last."""
        done = step / max(1, total - 1)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.stop - self.start) * done


@dataclass(frozen=True, kw_only=True)
class TokenWeighting:
    """The weight of each label: the product of the factors set here, 1 by default.

    Attributes:
        kinds: weight of each of SPAN_KINDS.
        sources: (pattern, weight) pairs; the first pattern that matches a row's source applies.
        entropy: c in 1 + c H / log(k + 1), H the teacher's entropy over top-k and tail.
        position: (a, length): from a without any context to 1 with `length` tokens of it.
    """

    kinds: tuple[float, ...] = (1.0,) * len(SPAN_KINDS)
    sources: tuple[tuple[str, float], ...] = ()
    entropy: float = 0.0
    position: tuple[float, int] = (1.0, 1)

    @property
    def is_uniform(self) -> bool:
        """True if every label counts 1."""
        return self == TokenWeighting()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Losses with their weights over the steps, their settings, and the weights of labels."""

    terms: tuple[LossTerm, ...]
    weighting: TokenWeighting = field(default_factory=TokenWeighting)
    temperature: float = 1.0
    jsd_beta: float = 0.5
    skew_alpha: float = 0.1
    state_loss: StateLoss = "normalized_mse"

    @property
    def exact_losses(self) -> tuple[ExactLoss, ...]:
        """The losses over all ids, in the order of the terms."""
        found = []
        for loss in (LOSSES[term.name] for term in self.terms):
            if loss.divergence is not None:
                mixing = getattr(self, loss.setting[1]) if loss.setting else 0.5
                found.append(ExactLoss(loss.divergence, mixing, self.temperature))
        return tuple(found)

    @property
    def needs_final_state(self) -> bool:
        """True if a loss rebuilds the teacher's distribution from its states."""
        return any(LOSSES[term.name].inputs == "exact" for term in self.terms)

    @property
    def matches_states(self) -> bool:
        """True if hidden states of student and teacher are compared."""
        return any(LOSSES[term.name].inputs == "states" for term in self.terms)

    @property
    def needs_draws(self) -> bool:
        """True if a loss reads the ids that were drawn from the teacher."""
        return any(LOSSES[term.name].inputs == "draws" for term in self.terms)

    @property
    def tail_temperature(self) -> float:
        """The temperature of the losses over top-k and tail; 1 without any."""
        with_tail = any(LOSSES[term.name].inputs == "buckets" for term in self.terms)
        return self.temperature if with_tail else 1.0

    @property
    def needs_router(self) -> bool:
        """True if the balance of the student's experts is part of the loss."""
        return any(LOSSES[term.name].inputs == "router" for term in self.terms)

    @property
    def warnings(self) -> list[str]:
        """The warnings of the losses in use."""
        return [LOSSES[t.name].warning for t in self.terms if LOSSES[t.name].warning]
