"""The journal of a run: entries of lost shards deleted, those of finished units merged."""

from __future__ import annotations

from collections.abc import Iterable

from labeler.console import err
from labeler.labeling.runs.locks import set_lock
from labeler.labeling.writing.set_place import SetPlace
from schemas.file_names import BATCH
from schemas.journal import compact_journal, forget_unit, read_entry


def forget_lost_units(place: SetPlace, todo: Iterable[int]) -> None:
    """Delete the entries of units that lost a file, or a part of one, before they are redone.

    Raises:
        LabelSetError: an entry was altered.
    """
    lost = {unit: entry for unit in todo if (entry := read_entry(place.folder, unit)) is not None}
    if not lost:
        return
    for unit, entry in lost.items():
        files = " or ".join(f"{place.name}/{name}" for name in entry.files)
        err.print(f"{files} is missing or truncated: unit {unit} is made again")
    with set_lock(place, "delete entries"):
        for unit in lost:
            forget_unit(place.folder, unit)
        place.publish()


def compact_after(place: SetPlace, unit: int, *, stride: int, planned_units: int) -> None:
    """Merge the entries of full batches, once a process is done with its units of one.

    Args:
        place: the set's place.
        unit: the unit that was just journaled.
        stride: distance to the next unit of this process.
        planned_units: units of the whole set; a batch past the end is never full.
    """
    batch = unit // BATCH
    if (unit + stride) // BATCH == batch or (batch + 1) * BATCH > planned_units:
        return
    with set_lock(place, "compact the journal"):
        if compact_journal(place.folder, planned_units):
            place.publish()
