"""The ways of training that are compared, and their flags of `trainer train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from trainer.ops.bf16_support import emulation_warning

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = "fp32" if emulation_warning(DEVICE) else "bf16"
PACK_TOKENS = 1024
TRAIN = (
    *("--lr", "2e-4", "--pack-tokens", str(PACK_TOKENS), "--packs-per-step", "1"),
    *("--dtype", DTYPE, "--save-every", "10", "--keep-checkpoints", "1"),
)
"""The flags of scripts/quickstart."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Attributes:
        loss: values of --loss; if `online` is set, they decide only what is logged.
        online: the teacher is loaded and run on each pack, by `benchmarks.quality.online`.
        generations: train on the teacher's own generations instead of the articles.
        states: train on a set that also has draws and the teacher's final states, stored with this
            --state-kl; 0 is float16.
        temperature: of the loss.
    """

    name: str
    what: str
    loss: tuple[str, ...]
    online: Literal["dense", "sampled"] | None = None
    generations: bool = False
    states: float | None = None
    temperature: float = 1.0

    @property
    def needs_more_labels(self) -> bool:
        """True if it trains on a set of its own: the quickstart's has top-k and tail at T = 1."""
        return self.states is not None or self.temperature != 1

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of `trainer train` that are its own."""
        words = [word for term in self.loss for word in ("--loss", term)]
        if self.temperature != 1:
            words += ["--temperature", f"{self.temperature:g}"]
        return tuple(words)


SMALL_KL = 0.01
"""--state-kl at which a state takes at most 230 bytes (benchmarks.states)."""

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
        name="bucketed_kl_t2",
        what="forward KL (k = 64, tail) at T = 2, tail stored at T = 2",
        loss=("forward_kl=1",),
        temperature=2.0,
    ),
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
    Arm(
        name="exact_kl",
        what="KL over all ids, stored float16 states",
        loss=("exact_kl=1",),
        states=0.0,
    ),
    Arm(
        name="exact_kl_small",
        what=f"KL over all ids, states at {SMALL_KL:g} nats",
        loss=("exact_kl=1",),
        states=SMALL_KL,
    ),
    Arm(
        name="exact_kl_t2",
        what="KL over all ids at T = 2, stored float16 states",
        loss=("exact_kl=1",),
        states=0.0,
        temperature=2.0,
    ),
    Arm(
        name="states_kl",
        what="distance of final states + forward KL (k = 64, tail)",
        loss=("states=1", "forward_kl=1"),
        states=0.0,
    ),
    Arm(
        name="sampled_stored",
        what="CE to 50 ids drawn from the teacher, stored",
        loss=("sampled=1",),
        states=0.0,
    ),
)
