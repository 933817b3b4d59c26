"""`ledger.json`: the cost of a label set, summed by engine and device."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError
from schemas.manifest import ExtensibleModel

LEDGER = "ledger.json"


class EngineCost(ExtensibleModel):
    """Sums over all units that one engine labeled on one device.

    Attributes:
        engine_seconds: seconds in the engine.
        energy_joules: energy in joules; None where a unit's energy was not measured.
        tokens: tokens of the rows, labeled or not.
        labels: labeled positions.
        energy_source: the meter.
        tokens_per_s: tokens per engine second.
    """

    engine_seconds: float
    energy_joules: float | None = None
    tokens: int
    labels: int
    energy_source: str | None = None
    tokens_per_s: float


class Ledger(ExtensibleModel):
    """The file: costs by engine and device, such as `vllm 0.32.0 on NVIDIA H100`."""

    engines: dict[str, EngineCost]


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Write a set's ledger atomically."""
    text = json.dumps(ledger.model_dump(mode="json"), indent=2) + "\n"
    write_atomic(directory / LEDGER, text)


def read_ledger(directory: Path) -> Ledger | None:
    """Read a set's ledger; None where there is none.

    Raises:
        LabelSetError: the file is not a ledger.
    """
    path = directory / LEDGER
    if not path.is_file():
        return None
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LabelSetError("cannot be read as a label set's ledger", path=path) from error
