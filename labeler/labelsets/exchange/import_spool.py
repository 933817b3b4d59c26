"""Imported rows on disk until all of the file is read: memory stays flat, units can be repeated."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeler.labelsets.derive.derived_writer import FinishedUnit
from schemas import __version__
from schemas.arrow import row_schema

PROVENANCE = {
    "engine": "import",
    "engine_version": __version__,
    "device": "none",
    "engine_seconds": 0.0,
}
"""What the journal says of the engine: there was none."""


@dataclass
class _Unit:
    batches: list[int] = field(default_factory=list)
    labels: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)


class Spool:
    """Row groups in a file without a name, which goes when the process does, and their rejects."""

    def __init__(self, folder: Path, vocab_size: int, unit_labels: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._sink = pa.PythonFile(self._file, "w")
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(self._sink, row_schema(vocab_size), options=options)
        self._units, self._unit_labels, self._batches = [_Unit()], unit_labels, 0

    def add(self, table: pa.Table) -> None:
        """Keep a row group."""
        labels = int(table["n_labels"].to_numpy().sum())
        if self._units[-1].batches and self._units[-1].labels + labels > self._unit_labels:
            self._units.append(_Unit())
        unit = self._units[-1]
        for batch in table.combine_chunks().to_batches():
            self._writer.write_batch(batch)
            unit.batches.append(self._batches)
            self._batches += 1
        unit.labels += labels

    def reject(self, reject: dict[str, Any]) -> None:
        """Keep what is said of a row that is none, with the rows that it came with."""
        self._units[-1].rejects.append(reject)

    def units(self, tail_source: str, entropy_source: str) -> list[FinishedUnit]:
        """All units; nothing can be added any more."""
        self._writer.close()
        self._file.flush()
        self._file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))

        def tables(unit: _Unit) -> Iterator[pa.Table]:
            return (pa.Table.from_batches([reader.get_batch(index)]) for index in unit.batches)

        return [
            FinishedUnit(
                tables=lambda unit=unit: tables(unit),  # type: ignore[misc]
                tail_source=tail_source,
                entropy_source=entropy_source,
                provenance=PROVENANCE,
                rejects=unit.rejects,
            )
            for unit in self._units
            if unit.batches
        ]
