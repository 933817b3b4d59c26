"""Environment variables that keep Ray quiet and closed; set them before it is imported."""

from __future__ import annotations

import os
import secrets


def prepare_ray() -> None:
    """Set the variables of Ray and Tune; some are read while they are imported."""
    os.environ |= {
        # It listens on all interfaces, and a client can run code: require a token of our own.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
        "RAY_AIR_NEW_OUTPUT": "0",  # which ignores verbose=0
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # it would kill the actors that watch the trials
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals stop the sweep through `SignalStopper`
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most reports are progress, without a KL
        "TUNE_MAX_PENDING_TRIALS_PG": "1",  # trials start in their order
    }
