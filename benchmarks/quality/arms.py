"""The ways of training that are compared, and their flags of `trainer train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PACK_TOKENS = 1024
TRAIN = (
    *("--lr", "2e-4", "--pack-tokens", str(PACK_TOKENS), "--packs-per-step", "1"),
    *("--dtype", "bf16", "--save-every", "10", "--keep-checkpoints", "1"),
)
"""The flags of scripts/quickstart."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Attributes:
        loss: values of --loss; if `online` is set, they decide only what is logged.
        online: the teacher is loaded and run on each pack, by `benchmarks.quality.online`.
        generations: train on the teacher's own generations instead of the articles.
    """

    name: str
    what: str
    loss: tuple[str, ...]
    online: Literal["dense", "sampled"] | None = None
    generations: bool = False


ARMS = (
    Arm(name="kd", what="forward KL (k = 64, tail) x 0.5 + CE", loss=("forward_kl=0.5", "ce=1")),
    Arm(name="ce", what="CE on the text", loss=("ce=1",)),
    Arm(
        name="ce_generations",
        what="CE on the teacher's generations",
        loss=("ce=1",),
        generations=True,
    ),
    Arm(name="kl", what="forward KL (k = 64, tail)", loss=("forward_kl=1",)),
    Arm(
        name="online",
        what="dense forward KL, teacher loaded",
        loss=("forward_kl=1",),
        online="dense",
    ),
    Arm(
        name="renormalized",
        what="KL of the top 64 renormalized, no tail",
        loss=("renormalized_kl=1",),
    ),
    Arm(
        name="sampled",
        what="CE to 50 ids drawn from the teacher",
        loss=("forward_kl=1",),
        online="sampled",
    ),
)
