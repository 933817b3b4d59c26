"""Spool imported rows on disk until all are read: memory stays flat, units can be read again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from labeler.labelsets.derive.derived_writer import FinishedUnit
from labeler.labelsets.exchange.convert_rows import Reject
from schemas.arrow import row_schema
from schemas.version import __version__

PROVENANCE = {
    "engine": "import",
    "engine_version": __version__,
    "device": "none",
    "engine_seconds": 0.0,
}
"""Facts about the engine for the journal: there was none."""


@dataclass
class _Unit:
    batches: list[int] = field(default_factory=list)
    labels: int = 0
    rejects: list[Reject] = field(default_factory=list)


class Spool:
    """Row groups and rejects; the row groups are in an unnamed file that ends with the process."""

    def __init__(self, folder: Path, vocab_size: int, unit_labels: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._sink = pa.PythonFile(self._file, "w")
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(self._sink, row_schema(vocab_size), options=options)
        self._units, self._unit_labels, self._batches = [_Unit()], unit_labels, 0

    def add(self, table: pa.Table) -> None:
        """Add a row group."""
        labels = int(table["n_labels"].to_numpy().sum())
        if self._units[-1].batches and self._units[-1].labels + labels > self._unit_labels:
            self._units.append(_Unit())
        unit = self._units[-1]
        for batch in table.combine_chunks().to_batches():
            self._writer.write_batch(batch)
            unit.batches.append(self._batches)
            self._batches += 1
        unit.labels += labels

    def reject(self, reject: Reject) -> None:
        """Add a reject to the current unit."""
        self._units[-1].rejects.append(reject)

    def units(self, tail_source: str, entropy_source: str) -> list[FinishedUnit]:
        """Close the spool, and return all units."""
        self._writer.close()
        self._file.flush()
        self._file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))

        def tables_of(unit: _Unit) -> Callable[[], Iterator[pa.Table]]:
            return lambda: (
                pa.Table.from_batches([reader.get_batch(index)]) for index in unit.batches
            )

        return [
            FinishedUnit(
                tables=tables_of(unit),
                tail_source=tail_source,
                entropy_source=entropy_source,
                provenance=PROVENANCE,
                rejects=unit.rejects,
            )
            for unit in self._units
            if unit.batches
        ]
