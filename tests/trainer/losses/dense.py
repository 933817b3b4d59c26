"""Every loss written out over the whole vocabulary, in probabilities, beside ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainer import losses

BETA, ALPHA = 0.3, 0.2
Dense = Callable[[Tensor, Tensor], Tensor]
Bucketed = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

DENSE: dict[str, Dense] = {
    "forward_kl": lambda q, p: (q * (q / p).log()).sum(1),
    "reverse_kl": lambda q, p: (p * (p / q).log()).sum(1),
    "jsd": lambda q, p: (
        BETA * (q * (q / (BETA * q + (1 - BETA) * p)).log()).sum(1)
        + (1 - BETA) * (p * (p / (BETA * q + (1 - BETA) * p)).log()).sum(1)
    ),
    "skew_kl": lambda q, p: (q * (q / (ALPHA * q + (1 - ALPHA) * p)).log()).sum(1),
    "skew_reverse_kl": lambda q, p: (p * (p / ((1 - ALPHA) * q + ALPHA * p)).log()).sum(1),
    "tvd": lambda q, p: (q - p).abs().sum(1) / 2,
}
"""From teacher probabilities [n, V] and student probabilities [n, V] to losses [n]."""

OURS: dict[str, Bucketed] = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "jsd": partial(losses.jsd, beta=BETA),
    "skew_kl": partial(losses.skew_kl, alpha=ALPHA),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=ALPHA),
    "tvd": losses.tvd,
}


def log_rows(n: int, v: int, seed: int) -> Tensor:
    """Return random log-probabilities, float64 [n, v]."""
    gen = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, v, generator=gen, dtype=torch.float64)).log_softmax(1)


def buckets(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k ids one by one, and the rest as one (-inf where nothing is left)."""
    return log_p[:, :k], torch.logsumexp(log_p[:, k:], 1)


def buckets_at(log_p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same for ids [n, k] anywhere."""
    rest = log_p.scatter(1, ids, -torch.inf)
    return log_p.gather(1, ids), torch.logsumexp(rest, 1)
