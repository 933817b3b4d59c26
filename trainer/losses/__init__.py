"""Label losses: pure functions on the k + 1 numbers per position that `trainer.ops` produces.

Buckets: each of the k labeled ids is one, and all other ids together are one. A divergence between
bucketed distributions never exceeds the dense one, and equals it when the ids cover the vocabulary
or all but one id. docs/losses.md has the formulas, their sources, and advice on which to use.

Temperature: the bucketed losses take both sides at T, which `batch_loss` gives them where a label
set has the tail at that T. It does not follow from the tail at T = 1: it depends on how the mass is
spread over ids that were not stored. `renormalized_kl` leaves the tail out and takes any
temperature. So does `linear_divergence`, from the teacher's hidden states: it is over all ids, and
inside the student's head.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.data.teacher_buckets import renormalize_teacher
    from trainer.losses.cross_entropies import cross_entropy, sampled_cross_entropy
    from trainer.losses.divergences import (
        forward_kl,
        jsd,
        reverse_kl,
        skew_kl,
        skew_reverse_kl,
        tvd,
    )
    from trainer.losses.expert_balance import router_balance
    from trainer.losses.renormalized import renormalized_kl
    from trainer.losses.state_distances import state_distance
    from trainer.ops import linear_divergence

    renormalised_kl, renormalise_teacher = renormalized_kl, renormalize_teacher

__all__ = [
    "cross_entropy",
    "forward_kl",
    "jsd",
    "linear_divergence",
    "renormalize_teacher",
    "renormalized_kl",
    "reverse_kl",
    "router_balance",
    "sampled_cross_entropy",
    "skew_kl",
    "skew_reverse_kl",
    "state_distance",
    "tvd",
]

_MODULES = {
    "cross_entropy": "trainer.losses.cross_entropies",
    "linear_divergence": "trainer.ops",
    "renormalize_teacher": "trainer.data.teacher_buckets",
    "renormalized_kl": "trainer.losses.renormalized",
    "router_balance": "trainer.losses.expert_balance",
    "sampled_cross_entropy": "trainer.losses.cross_entropies",
    "state_distance": "trainer.losses.state_distances",
}
_FORMER_NAMES = {
    "renormalise_teacher": "renormalize_teacher",
    "renormalised_kl": "renormalized_kl",
}


def __getattr__(name: str) -> object:
    """Import a loss on first use: the flags read `trainer.losses.loss_table` without torch."""
    name = _FORMER_NAMES.get(name, name)
    if name not in __all__:
        raise AttributeError(f"module 'trainer.losses' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "trainer.losses.divergences")), name)
