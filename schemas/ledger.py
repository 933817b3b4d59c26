"""`ledger.json`: the cost of a label set, summed by engine and device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError
from schemas.journal import UnitEntry
from schemas.json_values import parse_object
from schemas.manifest import ExtensibleModel
from schemas.set_paths import set_file

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

    engine_seconds: float = Field(ge=0, allow_inf_nan=False)
    energy_joules: float | None = None
    tokens: int = Field(ge=0)
    labels: int
    energy_source: str | None = None
    tokens_per_s: float


class Ledger(ExtensibleModel):
    """The file: costs by engine and device, such as `vllm 0.32.0 on NVIDIA H100`."""

    engines: dict[str, EngineCost]


class LedgerSums:
    """The ledger of journal entries, summed while they are read once."""

    def __init__(self) -> None:
        self._engines: dict[str, EngineCost] = {}

    def add(self, entry: UnitEntry) -> None:
        """Add the cost of a unit.

        Raises:
            LabelSetError: the entry does not record its engine, or not its time in seconds.
        """
        facts = entry.provenance
        numbers = (facts.get("engine_seconds"), facts.get("energy_joules", 0))
        texts = [facts.get(name) for name in ("engine", "engine_version", "device")]
        source = facts.get("energy_source")
        if not (
            all(isinstance(text, str) for text in texts)
            and all(number is None or _is_finite(number) for number in numbers)
            and numbers[0] is not None
            and isinstance(source, str | None)
        ):
            raise LabelSetError(
                "the journal entry does not say which engine made the unit, and in which time",
                path=entry.shard,
            )
        name = "{} {} on {}".format(*texts)
        known = self._engines.get(name) or EngineCost(
            engine_seconds=0.0,
            energy_joules=0.0,
            tokens=0,
            labels=0,
            energy_source=source,
            tokens_per_s=0.0,
        )
        joules = facts.get("energy_joules")
        if joules is not None and known.energy_joules is not None:
            joules += known.energy_joules
        else:
            joules = None  # not all of it was measured
        changes = {
            "engine_seconds": known.engine_seconds + facts["engine_seconds"],
            "energy_joules": joules,
            "tokens": known.tokens + entry.tokens,
            "labels": known.labels + entry.labels,
        }
        self._engines[name] = known.model_copy(update=changes)

    def ledger(self) -> Ledger:
        """Return engine seconds, energy, tokens and labels by engine and device."""
        engines = {}
        for name, cost in self._engines.items():
            seconds = round(cost.engine_seconds, 3)
            speed = round(cost.tokens / max(seconds, 1e-9), 1)
            changes = {"engine_seconds": seconds, "tokens_per_s": speed}
            engines[name] = cost.model_copy(update=changes)
        return Ledger(engines=engines)


def is_ledger_of(raw: bytes, expected: Ledger) -> bool:
    """Check whether the bytes of a ledger are the ones that its journal adds up to.

    Older versions left out fields that are empty.
    """
    try:
        content = parse_object(raw)
    except ValueError:
        return False
    if raw != _as_text(content).encode():
        return False
    full: dict[str, dict[str, Any]] = expected.model_dump(mode="json")["engines"]
    found = content.get("engines")
    if content.keys() != {"engines"} or not isinstance(found, dict):
        return False
    for name, cost in full.items():
        here = found.get(name)
        if not isinstance(here, dict) or here.keys() - cost.keys():
            return False
        if any(here.get(field) != value for field, value in cost.items()):
            return False
    return found.keys() == full.keys()


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Write a set's ledger atomically."""
    write_atomic(directory / LEDGER, _as_text(ledger.model_dump(mode="json")))


def read_ledger(directory: Path) -> Ledger | None:
    """Read a set's ledger; None where there is none.

    Raises:
        LabelSetError: the file is a link, or not a ledger.
    """
    path = set_file(directory, LEDGER)
    if not path.is_file():
        return None
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LabelSetError("cannot be read as a label set's ledger", path=path) from error


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e300


def _as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
