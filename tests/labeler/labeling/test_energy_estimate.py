"""codecarbon's estimate: computed without a network, written nowhere, silent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labeler.labeling.bench import bench_model
from labeler.labeling.runs import energy
from labeler.labeling.runs.energy import Energy

SPANS = """
import json, socket, sys, time

def refuse(*to, **more):
    sys.exit(f"network: {to}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from labeler.labeling.bench.energy_estimate import EnergyEstimate

estimate = EnergyEstimate("cpu")
found = []
for seconds in (0.5, 1.5):
    span, stop = estimate.start(), time.monotonic() + seconds
    while time.monotonic() < stop:
        sum(range(1000))
    used = span.read()
    found.append([used.joules, used.source, used.is_estimated])
gpu = EnergyEstimate("cuda").start().read()
print(json.dumps([found, gpu and gpu.joules]))
"""


@pytest.mark.slow
def test_power_times_time_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name, value in {"HOME": home, "TMPDIR": work, "CODECARBON_FORCE_CPU_POWER": 100}.items():
        monkeypatch.setenv(name, str(value))
    # What a user's own settings ask for is not done here.
    for name in ("EMISSIONS_ENDPOINT=http://127.0.0.1:9/", "SAVE_TO_API=true", "LOG_LEVEL=debug"):
        monkeypatch.setenv("CODECARBON_" + name.partition("=")[0], name.partition("=")[2])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    done = subprocess.run(
        [sys.executable, "-c", SPANS], cwd=work, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    ((short, source, is_estimated), (long, *_)), gpu = json.loads(done.stdout)
    assert source.startswith("codecarbon ")
    assert is_estimated
    # 10 W at least (a tenth of the rated power); memory adds its own.
    assert 0.5 * 10 < short < long
    assert long > 1.5 * 10
    assert gpu is None or gpu > 0
    assert not [*home.iterdir(), *work.iterdir()]


def test_energy_that_work_cannot_use_is_none() -> None:
    for joules in (0.0, -3.0, float("nan"), float("inf")):
        assert bench_model.plausible(Energy(joules=joules, source="RAPL")) is None
    assert bench_model.plausible(None) is None
    used = Energy(joules=1e-3, source="RAPL")
    assert bench_model.plausible(used) is used


def test_a_counter_of_another_device_is_not_the_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAPL counts a processor, NVML a GPU: neither is in the figure of the other."""

    def count(source: str, *, there: bool) -> None:
        def counters(*_: object) -> list[energy.Counter]:
            return [energy.Counter(source=source, read=lambda: 1.0)] if there else []

        monkeypatch.setattr(energy, f"_{source.lower()}_counters", counters)

    monkeypatch.setitem(sys.modules, "codecarbon", None)  # as if it were not installed
    for rapl, nvml, device, source in (
        *((True, False, "cpu", "RAPL"), (True, False, "cuda", None)),
        *((False, True, "cuda", "NVML"), (False, True, "cpu", None)),
        *((True, True, "cuda", "NVML and RAPL"), (True, True, "cpu", "RAPL")),
    ):
        count("RAPL", there=rapl)
        count("NVML", there=nvml)
        found = bench_model.energy_meter(device)().read()
        assert (found.source if found else None) == source
