"""The basis of `states/2` for a teacher: its Fisher matrix, the step, and the KL that is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.state_codec import FIT_ROWS, StateBasis, fit_basis, with_step

LOGIT_BYTES = 2**26
"""Memory for the logits of the positions that are computed at a time."""
PASSES = 2
"""Corrections of the step by the exact KL."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """A teacher's output projection: logits = softcap * tanh(scale * (W h + bias) / softcap).

    Attributes:
        weight: [V, d], the real ids only.
        bias: [V], or None.
        scale: factor on the logits.
        softcap: None where they are not capped.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 [n, V]."""
        z = (states.to(self.weight.dtype) @ self.weight.T).float()
        z = z if self.bias is None else z.add_(self.bias)
        z = z if self.scale == 1.0 else z.mul_(self.scale)
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def slopes(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of logits by W h + bias, [n, V] or one number for all."""
        if self.softcap is None:
            return self.scale
        return logits.div(self.softcap).square_().neg_().add_(1).mul_(self.scale)


@torch.inference_mode()
def fisher(head: OutputHead, states: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return E[J^T (diag p - p p^T) J], [d, d], over states [n, d]; J is W, times slopes if capped.

    A small error e of a state changes its distribution by a KL of e^T F e / 2 (Amari 1998).
    """
    weight = head.weight.float()
    mass = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    outer = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in _parts(head, states):
        logits = head.logits(part)
        slopes = head.slopes(logits)
        p = logits.softmax(1)
        mass += (p * slopes * slopes).sum(0, dtype=torch.float64)
        mean = ((p * slopes) @ weight).double()
        outer += mean.T @ mean
    spread = (weight * (mass / len(states)).float()[:, None]).T @ weight
    found: NDArray[np.float64] = (spread.double() - outer / len(states)).cpu().numpy()
    return found


@torch.inference_mode()
def kl_left(
    head: OutputHead, states: NDArray[np.floating], stored: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the KL [n] of the head's distribution on states [n, d] against that on stored ones."""
    found = []
    for exact, rebuilt in zip(_parts(head, states), _parts(head, stored), strict=True):
        log_q, log_p = (head.logits(x).log_softmax(1) for x in (exact, rebuilt))
        found.append((log_q.exp() * (log_q - log_p)).sum(1, dtype=torch.float64).cpu().numpy())
    return np.concatenate([*found, np.empty(0)])


def fit_states(head: OutputHead, sample: NDArray[np.floating], *, kl: float) -> StateBasis:
    """Fit the basis of `states/2` to a sample, with a step whose mean KL on other states is `kl`.

    The Fisher matrix of three quarters of the sample gives axes and, to first order, the step. The
    exact KL on the last quarter, which these axes have not seen, corrects it. Then the axes are
    fitted to the whole sample: a step means the same KL whatever the axes.

    Args:
        head: the teacher's.
        sample: [n, d], of a set's states, in the order of its sequences; at least 4 d of them.
        kl: mean KL in nats that the codec may cost.

    Raises:
        ValueError: the sample is too small, or no step costs this KL.
    """
    if len(sample) < 4 * sample.shape[1]:
        raise ValueError(
            f"{len(sample)} hidden states are too few to fit {sample.shape[1]} axes: give at least "
            f"{4 * sample.shape[1]}"
        )
    cut = len(sample) * 3 // 4
    fitted, other = sample[:cut], sample[cut:]
    of_fitted = fisher(head, fitted)
    basis = with_step(fit_basis(fitted, of_fitted), fitted, kl)
    for _ in range(PASSES):
        found = kl_left(head, other, basis.states(basis.codes(other))).mean()
        grown = float(np.sqrt(kl / max(found, kl / 16)))  # rounding may make the KL of no error < 0
        basis = replace(basis, step=basis.step * grown)
    whole = (of_fitted * len(fitted) + fisher(head, other) * len(other)) / len(sample)
    return replace(fit_basis(sample, whole), step=basis.step)


def fit_layer(sample: NDArray[np.floating], *, share: float) -> StateBasis:
    """Fit the basis of `states/2` for a layer, which no head reads.

    Every direction counts alike, so the axes are plain principal axes. The step is chosen so that
    the mean squared error is `share` of the median squared distance from the mean: of the mean of
    these, a few tokens (often the first of a sequence) can be nearly all.

    Args:
        sample: [n, d], of a set's states.
        share: of the variance of a usual state that the codec may cost.

    Raises:
        ValueError: a state is not finite, or no step costs this share.
    """
    mean = sample.mean(0, dtype=np.float64)
    blocks = (sample[start : start + FIT_ROWS] for start in range(0, len(sample), FIT_ROWS))
    apart = np.concatenate([np.square(block - mean).sum(1) for block in blocks])
    # The codec takes half the squared error in coordinates for the cost.
    weights = np.eye(sample.shape[1]) * (2 / max(np.median(apart), np.finfo(np.float32).tiny))
    return with_step(fit_basis(sample, weights), sample, share)


def _parts(head: OutputHead, states: NDArray[np.floating]) -> Iterator[Tensor]:
    size = max(1, LOGIT_BYTES // (4 * len(head.weight)))
    for start in range(0, len(states), size):
        part = np.ascontiguousarray(states[start : start + size], np.float32)
        yield torch.from_numpy(part).to(head.weight.device)
