"""Labels of a window as distributions: checked, and renormalized after storage rounding.

Where windows are read, so that an error of one process is raised by all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas import Labels, LabelSetError
from trainer.data.teacher_buckets import renormalize_teacher
from trainer.data.window import Window

LARGEST_SHIFT = 0.1
"""Largest logarithm of a label's total mass: `compact/1` rounds to within 0.05."""


def as_distributions(window: Window) -> Window:
    """Return a window whose labels sum to one.

    Raises:
        LabelSetError: a label holds no probability mass, not a mass of one, or an id twice.
    """
    labels = window.labels
    for ids in (labels.topk_ids, labels.sample_ids):
        if ids is not None and (repeats := _has_repeats(ids)).any():
            what = "hold an id twice: the mass outside the ids would be wrong"
            raise _error(window, repeats, what)
    logs, tails = labels.topk_logprobs, labels.tail_logprob
    empty = np.isneginf(logs).all(axis=1) & np.isneginf(tails)
    if empty.any():
        raise _error(window, empty, "hold no mass")
    topk, tail = renormalize_teacher(torch.from_numpy(logs), torch.from_numpy(tails))
    wrong = _has_wrong_mass(labels, topk, tail).numpy()
    if wrong.any():
        raise _error(window, wrong, "have probabilities that do not sum to one")
    ours = replace(labels, topk_logprobs=topk.numpy(), tail_logprob=tail.numpy())
    return replace(window, labels=ours)


def _error(window: Window, wrong: NDArray[np.bool_], what: str) -> LabelSetError:
    row = int(np.searchsorted(window.label_offsets, int(wrong.argmax()), side="right")) - 1
    return LabelSetError(
        f"{int(wrong.sum())} of {len(wrong)} labels {what}",
        row=window.keys[row],
        hint="run `labeler verify` on the label set",
    )


def _has_repeats(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return for each row of [n, k] whether it holds an id twice; the op relies on this check."""
    ordered = np.sort(ids, axis=1)
    repeats: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return np.asarray(repeats.any(axis=1))


def _has_wrong_mass(labels: Labels, topk: Tensor, tail: Tensor) -> Tensor:
    """Return bool [n]: labels that do not sum to one before they are renormalized.

    Renormalizing shifts all values of a label by the logarithm of its mass: one of them shows it.

    Args:
        labels: the labels as stored.
        topk: [n, k], their logprobs after `renormalize_teacher`.
        tail: [n], their tails after it.
    """
    stored = torch.from_numpy(labels.tail_logprob)
    shift = stored - tail
    if topk.shape[1]:
        first = torch.from_numpy(labels.topk_logprobs[:, 0])
        shift = torch.where(stored.isfinite(), shift, first - topk[:, 0])
    return shift.nan_to_num(0.0).abs() > LARGEST_SHIFT
