"""The losses that `--loss` can name. The flags, their help and the dispatch read this table.

It imports no torch: the settings of a run check their flags with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainer.ops.dense_divergence import Divergence

Inputs = Literal["buckets", "top_k", "draws", "token", "router", "exact", "states"]
"""The numbers that a loss compares.

buckets: the top-k and the tail of teacher and student; the teacher's tail is known at T = 1, and
    at the temperatures that the set was labeled at.
top_k: the top-k of both, without the tail.
draws: the ids drawn from the teacher with their counts, and the student's log-probabilities.
token: the student's log-probability of the actual token.
router: the balance of the student's experts, without any label.
exact: both distributions over all ids, which the head's op makes from the teacher's stored states.
states: the teacher's stored states and the student's own.
"""


StateLoss = Literal["mse", "cosine", "normalized_mse"]
"""Distances of `trainer.losses.state_distances`."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss that a run can minimize.

    Attributes:
        function: its name in `trainer.losses`.
        inputs: what the function takes, in this order: the teacher's, then the student's numbers.
        divergence: of an exact loss, its name for `trainer.ops.linear_divergence`.
        setting: (parameter of the function, field of `Objective` that it takes), if it has one.
        help: its line in the help of `--loss`.
        warning: printed at the start of a run that uses it.
    """

    function: str
    inputs: Inputs
    divergence: Divergence | None = None
    setting: tuple[str, str] | None = None
    help: str
    warning: str = ""

    @property
    def takes_temperature(self) -> bool:
        """True if --temperature changes it."""
        return self.inputs in ("exact", "buckets") or self.setting == (
            "temperature",
            "temperature",
        )


def _exact_name(divergence: Divergence) -> str:
    """Return the name of a divergence over all ids."""
    return "exact_kl" if divergence == "forward_kl" else f"exact_{divergence}"


_BUCKETED: dict[Divergence, Loss] = {
    "forward_kl": Loss(
        function="forward_kl",
        inputs="buckets",
        help="KL from teacher to student",
    ),
    "reverse_kl": Loss(
        function="reverse_kl",
        inputs="buckets",
        help="KL from student to teacher",
    ),
    "jsd": Loss(
        function="jsd",
        inputs="buckets",
        setting=("beta", "jsd_beta"),
        help="between the two, bounded",
    ),
    "skew_kl": Loss(
        function="skew_kl",
        inputs="buckets",
        setting=("alpha", "skew_alpha"),
        help="bounded forward KL",
    ),
    "skew_reverse_kl": Loss(
        function="skew_reverse_kl",
        inputs="buckets",
        setting=("alpha", "skew_alpha"),
        help="bounded reverse KL",
    ),
    "tvd": Loss(
        function="tvd",
        inputs="buckets",
        help="total variation, at most 1",
    ),
}
_EXACT = {
    _exact_name(name): Loss(
        function="linear_divergence",
        inputs="exact",
        divergence=name,
        setting=loss.setting and ("mixing", loss.setting[1]),
        help=f"likewise {name}"
        if name != "forward_kl"
        else "forward KL over all ids at any --temperature, from a set with states, see `labeler "
        "label --states final`",
    )
    for name, loss in _BUCKETED.items()
}
LOSSES: dict[str, Loss] = {
    **{str(name): loss for name, loss in _BUCKETED.items()},
    "renormalized_kl": Loss(
        function="renormalized_kl",
        inputs="top_k",
        setting=("temperature", "temperature"),
        help="forward KL without the tail, as in other tools",
        warning=(
            "renormalized_kl leaves the student free outside the teacher's top k: it may put any "
            "mass there at no cost. Use it for comparison with other tools; forward_kl has the tail"
        ),
    ),
    "sampled": Loss(
        function="sampled_cross_entropy",
        inputs="draws",
        help="cross-entropy on ids drawn from the teacher, see `labeler label --draws`",
    ),
    "ce": Loss(
        function="cross_entropy",
        inputs="token",
        help="cross-entropy on the actual tokens",
    ),
    "router": Loss(
        function="router_balance",
        inputs="router",
        help="balance of the experts of a mixture, such as router=0.01",
    ),
    **_EXACT,
    "states": Loss(
        function="state_distance",
        inputs="states",
        setting=("kind", "state_loss"),
        help="distance of the student's hidden states to the teacher's, see --state-layers and "
        "--state-loss",
    ),
}
"""Name in `--loss` -> loss."""

FORMER_NAMES = {"renormalised_kl": "renormalized_kl"}

LOSS_HELP = (
    "NAME=WEIGHT, once per loss of the sum: "
    + "; ".join(f"{name} ({loss.help})" for name, loss in LOSSES.items())
    + ". NAME=SHAPE:FROM:TO changes the weight over the run: ce=linear:1:0.1, or cosine. "
    "`--loss ce=1` alone is plain training. docs/losses.md helps to choose."
)
"""Help text of `--loss`."""
