"""Disk space of a label set, estimated before it is labeled, and the size of its units."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Literal

from labeler.labeling.planning.cut import Planned
from schemas import Identity, SoftshardsError
from schemas.file_names import FINAL
from schemas.kept_positions import parse_rule
from schemas.version import STATES_1

BYTES_PER_LOGPROB = {"plain": 2.8, "compact": 1.7}
"""Bytes per stored id and logprob, by codec; `labeler inspect` prints the actual figure."""
BYTES_PER_DRAW = 0.6
"""Bytes per drawn id: many are drawn more than once."""
BYTES_PER_POSITION = 8.0
"""Bytes per position beside them: tail, actual token, spans, text."""
BYTES_PER_HALF = 1.73
"""Bytes per dimension of hidden states in float16, compressed."""
STATES_SAMPLE = 8
"""Hidden states per dimension that bases are fitted to and, a quarter of them, measured on."""
UNIT_BYTES = 1 << 30
"""Memory for the ids and logprobs of one unit."""


def most_labels(planned: Planned, keep: str | None, samples: int) -> int:
    """Return about how many of the planned labels are stored, at most.

    Args:
        planned: the plan.
        keep: the rule of --keep-positions. How many labels are above an entropy is not known.
        samples: generations per planned row; 1 in mode score.
    """
    if keep is None:
        return planned.n_labels
    return parse_rule(keep).most_labels(planned.n_labels, planned.rows * samples)


def estimate_bytes(labels: int, *, k: int, draws: int, codec: Literal["plain", "compact"]) -> int:
    """Estimate the bytes that `labels` label positions take on disk."""
    ids = k * BYTES_PER_LOGPROB[codec] + draws * BYTES_PER_DRAW
    return int(labels * (ids + BYTES_PER_POSITION))


def estimate_state_bytes(labels: int, identity: Identity, *, kl: float, width: int | None) -> int:
    """Estimate the bytes that hidden states take on disk, with the head and the bases.

    Measured on SmolLM2-135M (docs/label_kinds.md): at an error of 1e-3, `states/2` takes 0.58 bytes
    per dimension, and 0.083 less with each factor of e.

    Args:
        labels: label positions.
        identity: of the set.
        kl: error that the codec may cost.
        width: dimensions of a state; None where the teacher's configuration does not name it.
    """
    if identity.states is None or width is None:
        return 0
    layers, _, codec = identity.states.partition(" ")
    count = layers.count(",") + 1
    weight_bytes = 4 if identity.dtype == "float32" else 2
    head = identity.vocab_size * width * weight_bytes if FINAL in layers else 0
    if codec == STATES_1:
        return int(labels * count * width * BYTES_PER_HALF) + head
    per_dimension = min(1.0, max(0.1, 0.58 - 0.083 * math.log(kl / 1e-3)))
    return int(labels * count * width * per_dimension) + head + count * 8 * width**2


def with_states_codec(identity: Identity, labels: int, width: int | None) -> Identity:
    """Return the identity with float16 for hidden states where a set is too small for `states/2`.

    A basis takes the bytes of four float16 states per dimension: smaller sets would gain nothing.
    """
    if identity.states is None or width is None or labels >= STATES_SAMPLE * width:
        return identity
    layers = identity.states.partition(" ")[0]
    return identity.model_copy(update={"states": f"{layers} {STATES_1}"})


def free_bytes(out: Path) -> int:
    """Return the free bytes of the disk that holds `out`, which need not exist."""
    path = out.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def require_space(needed: int, out: Path) -> None:
    """Refuse a label set that cannot fit on the disk.

    Args:
        needed: estimated bytes.
        out: its folder.

    Raises:
        SoftshardsError: the estimate is more than the free space.
    """
    free = free_bytes(out)
    if needed > free:
        raise SoftshardsError(
            f"the label set needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            path=out,
            hint="lower --k, label less, or choose another disk for --out",
        )


def labels_per_unit(unit_labels: int, k: int, states: int = 0) -> int:
    """Return `unit_labels`, or fewer where that many labels would not fit in memory.

    A unit's labels are in memory twice: one unit is labeled while another is written.

    Args:
        unit_labels: as asked for.
        k: ids per label.
        states: numbers in the hidden states of a label.
    """
    return max(1, min(unit_labels, UNIT_BYTES // (8 * k + 4 * states)))
