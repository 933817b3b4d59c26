"""Environment variables of Ray Tune; set them before it is imported."""

from __future__ import annotations

import os

from schemas.ray_cluster import prepare_ray


def prepare_tune(address: str) -> None:
    """Set the variables of Ray and Tune; some are read while they are imported.

    Args:
        address: of the cluster, as for `schemas.ray_cluster`.
    """
    prepare_ray(address)
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",  # which ignores verbose=0
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals stop the sweep through `SignalStopper`
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most reports are progress, without a KL
        "TUNE_MAX_PENDING_TRIALS_PG": "1",  # trials start in their order
    }
