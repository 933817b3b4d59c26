"""The log-probabilities that a student returns for a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StudentOutput(NamedTuple):
    """A student's log-probabilities at n labels, in nats.

    Attributes:
        logp: [n, k], of the top-k ids.
        log_rest: [n], of the mass outside them.
        target_logp: [n], of the actual tokens.
        drawn_logp: [n, m], of the ids drawn from the teacher, where the batch has any.
        router: the balance of the experts, where the student was asked for it; a scalar, no
            log-probability.
        tempered: logp and log_rest at another temperature, where one was given.
        exact: [n] of each loss of the `ExactTarget`, where one was given.
        states: the hidden states that are compared, the teacher's and the student's, each [n, d_t].
    """

    logp: Tensor
    log_rest: Tensor
    target_logp: Tensor
    drawn_logp: Tensor | None = None
    router: Tensor | None = None
    tempered: tuple[Tensor, Tensor] | None = None
    exact: tuple[Tensor, ...] = ()
    states: tuple[tuple[Tensor, Tensor], ...] = ()
