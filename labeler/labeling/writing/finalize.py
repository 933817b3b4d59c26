"""The end of a run: the index, the totals and the cost of a complete label set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from schemas import Manifest
from schemas.file_names import JOURNAL, is_plan_rejects
from schemas.fingerprint import sha256_file
from schemas.hidden_reader import content_digest
from schemas.index import read_index, write_index
from schemas.journal import UnitEntry, compact_journal, finished_unit
from schemas.ledger import LedgerSums, write_ledger
from schemas.manifest import FileDigest, Totals, read_manifest, write_manifest
from schemas.set_paths import set_file


def close(
    out: Path, *, changed: bool, sizes: Mapping[str, int] | None = None
) -> tuple[Manifest, Totals, list[int]]:
    """Finalize a set if all its units are done; only one process at a time may call this.

    The manifest is read again: another process may have closed the set, or appended to it.

    Args:
        out: the set's folder.
        changed: whether this process labeled units, so that an existing index may be outdated.
        sizes: as in `finished_unit`.

    Returns:
        The manifest, totals of the finished units, and the numbers of the others.
    """
    manifest = read_manifest(out)
    sums = _Sums(sizes)
    done = {entry.unit for entry in sums.over(out, manifest)}
    missing = [unit for unit in range(manifest.planned_units) if unit not in done]
    if not missing and (changed or not _is_closed(out, manifest)):
        manifest = finalize(out, manifest, sizes)
    recorded = None if missing else manifest.totals
    return manifest, recorded or sums.totals(manifest), missing


def finalize(out: Path, manifest: Manifest, sizes: Mapping[str, int] | None = None) -> Manifest:
    """Index the finished units and close the set. Any process may do it, any number of times."""
    compact_journal(out, manifest.planned_units)
    sums = _Sums(sizes)
    pages = write_index(out, sums.over(out, manifest))
    hidden: tuple[FileDigest, ...] = ()
    if manifest.states is not None:
        hidden = write_index(out, _Sums(sizes).over(out, manifest), hidden=True)
    changes = {
        "status": "complete",
        "format_version": manifest.written_version,
        "index_pages": pages,
        "hidden_pages": hidden or None,
        "content_digest": content_digest(
            read_index(out, pages), read_index(out, hidden, hidden=True)
        ),
        "totals": sums.totals(manifest),
        "plan_rejects": _plan_rejects(out),
    }
    complete = manifest.model_copy(update=changes)
    write_ledger(out, sums.costs.ledger())
    write_manifest(out, complete)
    return complete


def _plan_rejects(out: Path) -> tuple[FileDigest, ...]:
    """Return the digests of the records that the plans rejected: nothing else covers them."""
    names = [f"{JOURNAL}/{path.name}" for path in (out / JOURNAL).glob("plan*.rejects.parquet")]
    return tuple(
        FileDigest(path=name, sha256=sha256_file(set_file(out, name)))
        for name in sorted(names)
        if is_plan_rejects(name)
    )


def _is_closed(out: Path, manifest: Manifest) -> bool:
    """Return whether a set is complete and its index exists."""
    pages = (*manifest.index_pages, *(manifest.hidden_pages or ()))
    return manifest.status == "complete" and all((out / page.path).is_file() for page in pages)


class _Sums:
    """Sums over the journal's entries, taken while they are read once."""

    def __init__(self, sizes: Mapping[str, int] | None) -> None:
        self._sizes = sizes
        names = ("units", "rows", "tokens", "labels", "rejects", "bytes", "hidden_bytes")
        self._sums = dict.fromkeys(names, 0)
        self.costs = LedgerSums()

    def over(self, out: Path, manifest: Manifest) -> Iterator[UnitEntry]:
        """Yield the entries of all finished units, by unit; add each up as it passes."""
        for unit in range(manifest.planned_units):
            entry = finished_unit(out, unit, self._sizes)
            if entry is not None:
                self._sums["units"] += 1
                for name in ("rows", "tokens", "labels", "rejects", "bytes"):
                    self._sums[name] += getattr(entry, name)
                if entry.hidden is not None:
                    self._sums["hidden_bytes"] += entry.hidden.bytes
                self.costs.add(entry)
                yield entry

    def totals(self, manifest: Manifest) -> Totals:
        """Return the sums for the manifest; its rejects are the plan's and the units'."""
        rejects = self._sums["rejects"] + manifest.provenance.get("plan_rejects", 0)
        hidden = None if manifest.states is None else self._sums["hidden_bytes"]
        return Totals(**self._sums | {"rejects": rejects, "hidden_bytes": hidden})
