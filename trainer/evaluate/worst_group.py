"""Find the group on which a model is farthest from the teacher. No torch."""

from __future__ import annotations

import numpy as np

from trainer.evaluate.bootstrap import from_text
from trainer.evaluate.results import Group, WorstGroup


def worst_group(groups: list[Group]) -> WorstGroup | None:
    """Return the group with the highest KL among those with an interval.

    The worst of many groups looks worse than it is: its interval is that of one group. How often it
    is the worst in the replicates says how sure the choice is. Pooled groups do not compete, as
    they are none.

    Args:
        groups: the groups of one dimension.

    Returns:
        None with fewer than two groups to compare.
    """
    named = [group for group in groups if group.pooled is None]
    known = [group for group in named if "kl" in group.intervals]
    if len(known) < 2:
        return None
    worst = max(range(len(known)), key=lambda at: known[at].metrics.kl)
    replicates = np.stack([from_text(group.replicates["kl"]) for group in known])
    complete = replicates[:, ~np.isnan(replicates).any(0)]
    share = float((complete.argmax(0) == worst).mean()) if complete.size else 0.0
    return WorstGroup(
        value=known[worst].value,
        documents=known[worst].documents,
        kl=known[worst].metrics.kl,
        interval=known[worst].intervals["kl"],
        share=share,
        compared=len(known),
        too_small=len(named) - len(known),
    )
