"""Energy used by some work, where the machine counts it: NVML for GPUs, RAPL for CPUs.

The counters cover whole devices, including everything else that runs on them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

NVML = "NVML"
POWERCAP = Path("/sys/class/powercap")
"""Linux shows the RAPL counters here; on most systems only root may read them."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules since the meter was started, and the counters they come from.

    Attributes:
        is_estimated: no counter measured them; `source` computed them from constants.
    """

    joules: float
    source: str
    is_estimated: bool = False


@dataclass(kw_only=True)
class Counter:
    """A counter of joules; at `wraps_at`, if set, it starts again from 0."""

    source: str
    read: Callable[[], float]
    wraps_at: float | None = None
    last: float = 0.0


class Meter:
    """Running counters; `start` makes one."""

    def __init__(self, counters: list[Counter]) -> None:
        self._counters, self._joules = counters, 0.0
        for counter in counters:
            counter.last = counter.read()

    def read(self) -> Energy | None:
        """Return the energy since the start, or None where nothing is counted or a counter failed.

        Call this every few minutes during long work: a RAPL counter starts again from 0 after
        about 260 kJ, which is noticed only once per reading.
        """
        for counter in self._counters:
            try:
                now = counter.read()
            except Exception:  # a lost GPU, a revoked permission: the work continues uncounted
                self._counters = []
                break
            wrapped = counter.wraps_at if now < counter.last and counter.wraps_at else 0.0
            self._joules += now + wrapped - counter.last
            counter.last = now
        if not self._counters:
            return None
        sources = dict.fromkeys(counter.source for counter in self._counters)
        return Energy(joules=self._joules, source=" and ".join(sources))


def start(powercap: Path = POWERCAP, *, gpus: bool = True) -> Meter:
    """Start a meter over all counters that this process can read.

    Args:
        powercap: folder with the RAPL counters.
        gpus: count GPUs, too; without, a GPU beside work on a CPU is not in its figure.
    """
    return Meter([*(_nvml_counters() if gpus else ()), *_rapl_counters(powercap)])


def _rapl_counters(powercap: Path) -> list[Counter]:
    """Return the packages and their memory; other domains are parts or sums of these."""
    counters = []
    for domain in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (domain / "name").read_text().strip()
            _rapl_joules(domain / "energy_uj")
            wraps_at = _rapl_joules(domain / "max_energy_range_uj")
        except OSError:
            continue
        if name.startswith("package") or name == "dram":
            counters.append(
                Counter(
                    source="RAPL",
                    read=functools.partial(_rapl_joules, domain / "energy_uj"),
                    wraps_at=wraps_at,
                )
            )
    return counters


def _rapl_joules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _nvml_counters() -> list[Counter]:
    """Return the GPUs that this process may use; none without NVML or its Python package."""
    try:
        pynvml: Any = import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no GPU: nothing is counted
        return []
    counters = []
    for gpu in _visible_gpus(pynvml):
        read = functools.partial(_nvml_joules, pynvml, gpu)
        try:
            read()
        except pynvml.NVMLError:  # older than Volta
            continue
        counters.append(Counter(source=NVML, read=read))
    return counters


def _nvml_joules(pynvml: Any, gpu: Any) -> float:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3


def _visible_gpus(pynvml: Any) -> list[Any]:
    """Return NVML's handles of the GPUs in CUDA_VISIBLE_DEVICES (numbers or UUIDs), or of all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    try:
        return [
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]
    except pynvml.NVMLError:  # -1 and the like hide all
        return []
