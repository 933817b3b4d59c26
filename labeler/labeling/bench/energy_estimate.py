"""Energy estimated from constants, by codecarbon, for machines whose counters cannot be read."""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from typing import Any, Self

from labeler.labeling.runs.energy import Energy

JOULES_PER_KWH = 3.6e6


class EnergyEstimate:
    """Spans of work, each from `start` to `read`: the processor's load times its rated power.

    codecarbon reads settings such as CODECARBON_FORCE_CPU_POWER from the environment and from
    .codecarbon.config. Of what it can write and send, all is off.

    Args:
        device: the device that does the work. For `cuda` there is an estimate only where
            codecarbon sees a GPU.

    Raises:
        ImportError: codecarbon is not installed.
    """

    def __init__(self, device: str) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._source = f"codecarbon {version('codecarbon')}"
        self._on_gpu = device != "cpu"
        self._tracker: Any = OfflineEmissionsTracker(
            output_methods=[],
            output_handlers=[],
            output_dir=tempfile.gettempdir(),
            emissions_endpoint=None,
            allow_multiple_runs=True,  # otherwise a lock file
            log_level="critical",
            tracking_mode="machine",  # as the counters
            force_mode_cpu_load=True,
            force_carbon_intensity_g_co2e_kwh=0.0,  # no tables of countries are read
        )
        self.start().read()  # the first span looks for the hardware

    def start(self) -> Self:
        """Begin a span."""
        self._tracker.start_task()
        return self

    def read(self) -> Energy | None:
        """End the span and return its energy; None where codecarbon does not see the device."""
        found = self._tracker.stop_task()
        if found is None or (self._on_gpu and not found.gpu_energy > 0):
            return None
        joules = found.energy_consumed * JOULES_PER_KWH
        return Energy(joules=joules, source=self._source, is_estimated=True)
