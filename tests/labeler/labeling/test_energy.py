"""RAPL counters as the kernel shows them: a folder of text files. NVML needs a GPU: not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeler.labeling.runs import energy
from labeler.labeling.runs import label_run as run
from labeler.labeling.writing.finalize import finalize
from schemas.journal import read_entry, write_entry
from schemas.ledger import LEDGER
from schemas.manifest import read_manifest
from tests.labeler.conftest import Settings

RANGE_UJ = 262_143_328_850


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def write_domain(powercap: Path, number: str, name: str, microjoules: int) -> Path:
    domain = powercap / f"intel-rapl:{number}"
    domain.mkdir(parents=True, exist_ok=True)
    (domain / "name").write_text(f"{name}\n")
    (domain / "energy_uj").write_text(f"{microjoules}\n")
    (domain / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return domain


def test_packages_and_memory_are_summed_and_parts_are_not_counted_twice(tmp_path: Path) -> None:
    domains = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for number, name in domains.items():
        write_domain(tmp_path, number, name, 1_000_000)
    meter = energy.start(tmp_path)
    used = {"0": 5, "0:0": 3, "0:1": 1, "1": 7, "2": 90}  # joules
    for number, name in domains.items():
        write_domain(tmp_path, number, name, 1_000_000 + used[number] * 1_000_000)
    reading = meter.read()
    assert reading is not None
    assert reading.joules == pytest.approx(5 + 1 + 7)
    assert reading.source == "RAPL"


def test_a_counter_that_wraps_is_followed_from_reading_to_reading(tmp_path: Path) -> None:
    write_domain(tmp_path, "0", "package-0", RANGE_UJ - 2_000_000)
    meter = energy.start(tmp_path)
    joules = []
    for microjoules in (3_000_000, RANGE_UJ - 1_000_000, 500_000):
        write_domain(tmp_path, "0", "package-0", microjoules)
        reading = meter.read()
        assert reading is not None
        joules.append(reading.joules)
    once = RANGE_UJ / 1e6
    assert joules == pytest.approx([5.0, once + 1.0, once + 2.5])


def test_a_counter_that_disappears_ends_the_count_not_the_work(tmp_path: Path) -> None:
    domain = write_domain(tmp_path, "0", "package-0", 1)
    meter = energy.start(tmp_path)
    assert meter.read() == energy.Energy(joules=0.0, source="RAPL")
    (domain / "energy_uj").unlink()
    assert meter.read() is None
    assert meter.read() is None


def test_unreadable_counters_count_nothing(tmp_path: Path) -> None:
    assert energy.start(tmp_path / "none").read() is None
    (write_domain(tmp_path, "0", "package-0", 1) / "energy_uj").unlink()
    assert energy.start(tmp_path).read() is None


def test_units_are_metered_and_the_ledger_sums_them_if_all_were_measured(
    settings: Settings,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    powercap, start = tmp_path / "powercap", energy.start
    write_domain(powercap, "0", "package-0", 1_000_000)
    monkeypatch.setattr(energy, "start", lambda: start(powercap))
    config = settings()
    run.label([str(corpus)], config)
    manifest = read_manifest(config.out)
    assert manifest.planned_units > 2
    for unit in range(manifest.planned_units):
        entry = read_entry(config.out, unit)
        assert entry is not None
        facts = entry.provenance
        assert (facts["energy_joules"], facts["energy_source"]) == (0.0, "RAPL")  # it stood still
        used = {"energy_joules": 1.5}
        write_entry(config.out, entry.model_copy(update={"provenance": facts | used}))
    finalize(config.out, manifest)
    assert joules_of(config.out) == pytest.approx(1.5 * manifest.planned_units)
    lost = {"energy_joules": None, "energy_source": None}
    write_entry(config.out, entry.model_copy(update={"provenance": facts | lost}))
    finalize(config.out, manifest)
    assert joules_of(config.out) is None


def joules_of(out: Path) -> float | None:
    (sums,) = json.loads((out / LEDGER).read_text())["engines"].values()
    assert sums["energy_source"] == "RAPL"
    return sums["energy_joules"]
