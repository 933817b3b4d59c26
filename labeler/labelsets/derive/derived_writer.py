"""Write a label set from finished rows: unit by unit, resumable, closed at the end.

The same guarantees hold as for a labeling run: a unit is done when its shard is complete and
journaled, and after a crash the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.console import err, progress
from labeler.labeling.runs.journal_upkeep import compact_after, forget_lost_units
from labeler.labeling.runs.locks import rank_lock, remove_abandoned_files, set_lock
from labeler.labeling.runs.stopping import stop_on_signals
from labeler.labeling.writing.finalize import close
from labeler.labeling.writing.set_place import SetPlace
from schemas import Identity, Manifest, SoftshardsError, __version__
from schemas.compact import frequency_order
from schemas.file_names import HEAD, TOKENIZER, hidden_name, shard_name
from schemas.hidden_part import write_hidden
from schemas.journal import finished_unit, journal_unit
from schemas.manifest import (
    MANIFEST,
    ROUNDED_BY,
    FileDigest,
    StatesRecord,
    differences,
    read_manifest,
    require_same_identity,
    write_manifest,
)
from schemas.os_errors import explain_full_disk
from schemas.shard import write_shard
from schemas.version import COMPACT_1


@dataclass(frozen=True, kw_only=True)
class FinishedUnit:
    """The rows of one shard.

    Attributes:
        tables: returns the rows with plain columns, one table per row group; `compact/1` calls it
            twice.
        tail_source: how the tails were computed, for the shard's footer.
        entropy_source: how the entropies were computed, for the shard's footer.
        provenance: facts for the journal: `engine`, `engine_version`, `device`, `engine_seconds`,
            as `labeler.labeling.runs` records them.
        rejects: rows that were rejected, as in `schemas.arrow.REJECT_SCHEMA`.
        hidden: returns their hidden states, one table per row group; None for a set without.
    """

    tables: Callable[[], Iterable[pa.Table]]
    tail_source: str
    entropy_source: str
    provenance: Mapping[str, object]
    rejects: Sequence[Mapping[str, object]] = ()
    hidden: Callable[[], Iterable[pa.Table]] | None = None


@dataclass(frozen=True, kw_only=True)
class CopiedStates:
    """The hidden states of a derived set, and a function that copies its files in `head/`."""

    record: StatesRecord
    copy_files: Callable[[Path], None]


def write_derived(
    place: SetPlace,
    units: Sequence[FinishedUnit],
    *,
    identity: Identity,
    codec: str,
    derived: Mapping[str, object],
    copy_tokenizer: Callable[[Path], tuple[FileDigest, ...]],
    provenance: Mapping[str, object],
    check: Callable[[int], Mapping[str, object]] | None = None,
    states: CopiedStates | None = None,
) -> Manifest:
    """Write the units that are missing, and close the set.

    Args:
        place: where the new set goes.
        units: all units, none of them empty; unit i becomes shard i.
        identity: identity of the new set.
        codec: codec of the new set.
        derived: sources and settings, as JSON; a set in `place` must have been made with the same.
        copy_tokenizer: copies the tokenizer's files into a folder, and returns their digests.
        provenance: further facts for the manifest (`teacher`, `parents`, ...).
        check: called with a unit's number when its shard is written, before it is journaled; the
            journal records the facts that it returns.
        states: hidden states, if the units have them.

    Raises:
        SoftshardsError: `place` holds another set, or other files, the disk is full, or `check`
            refuses.
    """
    out = place.folder
    full = explain_full_disk("the label set", out)
    with stop_on_signals() as stop, rank_lock(place, 0, 1), full:
        place.pull()
        remove_abandoned_files(place, 0, 1)
        manifest = _begin(out, units, identity, codec, derived, copy_tokenizer, provenance, states)
        todo = [n for n in range(len(units)) if finished_unit(out, n, place.sizes) is None]
        place.publish()
        forget_lost_units(place, todo)
        if reused := len(units) - len(todo):
            err.print(f"reusing {reused} of {len(units)} units in {place.name}")
        with stop.finishing_units(), progress("units") as bar:
            for unit in bar.track(todo, description="writing"):
                _write(out, unit, units[unit], manifest, check)
                place.publish_unit(unit)
                compact_after(place, unit, stride=1, planned_units=len(units))
                if stop.requested:
                    break
        with set_lock(place, "close"):
            manifest, _, missing = close(out, changed=bool(todo), sizes=place.sizes)
            place.publish()
    if missing:
        raise SoftshardsError(
            f"stopped with {len(missing)} of {len(units)} units left; finished units are safe",
            path=place.name,
            hint="run the same command again: it resumes",
        )
    return manifest


def _begin(
    out: Path,
    units: Sequence[FinishedUnit],
    identity: Identity,
    codec: str,
    derived: Mapping[str, object],
    copy_tokenizer: Callable[[Path], tuple[FileDigest, ...]],
    provenance: Mapping[str, object],
    states: CopiedStates | None,
) -> Manifest:
    hint = "write into another folder, or give the original settings"
    if (out / MANIFEST).exists():
        found = read_manifest(out)
        require_same_identity(identity, found.identity, path=out, hint=hint)
        before = {"codec": found.codec} | found.provenance.get("derived", {"how": "labeled"})
        # It follows from the sources, and earlier versions did not write it.
        rounded = {ROUNDED_BY: derived[ROUNDED_BY]} if ROUNDED_BY in derived else {}
        if lines := differences(found=before | rounded, asked={"codec": codec, **derived}):
            raise SoftshardsError(
                f"the folder holds another label set:{lines}", path=out, hint=hint
            )
        if found.status == "running" and rounded and ROUNDED_BY not in before:
            provenance = found.provenance | {"derived": derived}
            found = found.model_copy(update={"provenance": provenance})
            write_manifest(out, found)
        return found
    # A process killed before the manifest may have left a tokenizer, or a head; locks have a dot.
    own = (TOKENIZER, HEAD)
    others = [p.name for p in out.iterdir() if p.name not in own and p.name[0] != "."]
    if others:
        raise SoftshardsError(
            f"the folder is not empty: it has {min(others)}", path=out, hint="name a new folder"
        )
    if states is not None:
        states.copy_files(out)
    manifest = Manifest(
        codec=codec,
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=None,
        planned_units=len(units),
        tokenizer_files=copy_tokenizer(out),
        states=None if states is None else states.record,
        provenance={"softshards": __version__, **provenance, "derived": derived},
    )
    version = {"format_version": manifest.written_version}
    manifest = manifest.model_copy(update=version)
    write_manifest(out, manifest)
    return manifest


def _write(
    out: Path,
    unit: int,
    source: FinishedUnit,
    manifest: Manifest,
    check: Callable[[int], Mapping[str, object]] | None,
) -> None:
    order = _order(source.tables()) if manifest.codec == COMPACT_1 else None
    try:
        groups, footer = write_shard(
            out / shard_name(unit),
            source.tables(),
            identity=manifest.identity,
            unit=unit,
            tail_source=source.tail_source,
            entropy_source=source.entropy_source,
            order=order,
        )
    except ValueError as error:  # labels that no codec can hold
        hint = "`labeler verify` of the given sets names the rows"
        raise SoftshardsError(
            f"the rows of unit {unit} cannot be written: {error}", path=out, hint=hint
        ) from error
    hidden = None
    if manifest.states is not None and source.hidden is not None:
        hidden = write_hidden(
            out / hidden_name(unit),
            source.hidden(),
            states=manifest.states,
            identity_digest=manifest.identity_digest,
            unit=unit,
        )
    facts = check(unit) if check is not None else {}
    provenance = {**source.provenance, **facts}
    rejects = source.rejects
    journal_unit(out, unit, groups, footer, rejects=rejects, provenance=provenance, hidden=hidden)


def _order(tables: Iterable[pa.Table]) -> NDArray[np.int32]:
    """Return the frequency order of a shard's ids, holding one table at a time."""
    counts = np.zeros(0, np.int64)
    for table in tables:
        ids = table["topk_ids"].combine_chunks().flatten().flatten().to_numpy()
        more = np.bincount(ids, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return frequency_order(counts)
