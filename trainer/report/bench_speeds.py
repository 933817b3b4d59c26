"""Speeds of `labeler bench` as the report shows them."""

from __future__ import annotations

from pathlib import Path

from schemas.bench_results import UNSTABLE, BenchModel, BenchResults, Measured
from trainer.report.report_data import Rate, Speed, Wait


def speed_of(
    bench: BenchResults | None, name: str, places: list[Path], teacher: BenchModel | None = None
) -> Speed | None:
    """Return the speed of a model; None if it was not measured.

    Args:
        bench: the measurements.
        name: of the model, where no folder matches.
        places: folders that it may have been measured in.
        teacher: its measurements, for the speed-up.
    """
    found = bench.find(name, places) if bench else None
    if found is None:
        return None
    return Speed(
        reading=_rate(found.reading),
        generating=_rate(found.generating),
        speedup=None if teacher is None else _speedup(found.generating, teacher.generating),
        waits=[
            Wait(
                concurrency=one.concurrency,
                first_token=_rate(one.first_token_s),
                last_token=_rate(one.last_token_s),
            )
            for one in found.latencies
        ],
        peak_memory=found.peak_memory_bytes,
        joules=None if found.joules_per_token is None else _rate(found.joules_per_token),
        joules_estimated_by=found.energy_source if found.energy_is_estimated else None,
    )


def _rate(measured: Measured) -> Rate:
    rounds = measured.rounds
    return Rate(
        value=measured.median,
        low=min(rounds) if len(rounds) > 1 else None,
        high=max(rounds) if len(rounds) > 1 else None,
        is_stable=measured.is_stable,
    )


def _speedup(student: Measured, teacher: Measured) -> Rate:
    """Return the speed-up; without rounds it is stable if both speeds are."""
    found = _rate(student.relative_to(teacher))
    if found.low is None and student.spread is not None and teacher.spread is not None:
        found.is_stable = max(student.spread, teacher.spread) <= UNSTABLE
    return found
