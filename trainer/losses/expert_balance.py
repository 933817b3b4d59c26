"""The balance of a student's experts, as a loss beside those over labels."""

from __future__ import annotations

from torch import Tensor


def router_balance(loss: Tensor, log_rest: Tensor) -> Tensor:
    """Return the loss of a batch at each of its labels: [n], all equal.

    A mean over labels is then the mean over batches, each counted by its labels.

    Args:
        loss: a scalar (see `trainer.student.router_loss`).
        log_rest: [n], of the labels.
    """
    return loss.expand(log_rest.shape)
