"""What is broken in a label set's folder, and what can be made whole again; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from labeler.labelsets.repair.salvage import (
    Footer,
    Ranges,
    consistent_ranges,
    has_ranges,
    new_entry,
    read_footer,
    salvaged_manifest,
)
from schemas import LabelSetError, Manifest
from schemas.atomic import TMP_PREFIX
from schemas.fingerprint import sha256_file, tokenizer_digest
from schemas.index import INDEX, read_index
from schemas.journal import UnitEntry, entry_path, read_entry, rejects_path, shard_name
from schemas.labelset import check_tokenizer
from schemas.manifest import MANIFEST, FileDigest, read_manifest
from schemas.plan import is_plan, open_plan

QUARANTINE = "quarantine"
FROM_FILE = "the file itself"


@dataclass(kw_only=True)
class Diagnosis:
    """What `labeler repair` is to do.

    Attributes:
        out: the set's folder; manifest: the one it is to have, before it is closed.
        manifest_lost: why the manifest there is of no use, or None.
        moves: files to put aside, with the reason.
        entries: the journal entry of each good unit; written anew where in `rebuilt`.
        rebuilt: units whose entry was lost, with what their hashes were checked against.
        lost_rejects: units whose rejects are lost.
        redo: units whose labels are lost.
        plan: `whole`, `missing` (or altered), or `none` for a set that needs none.
        tokenizer: None; or the checkpoint to copy the tokenizer from; or "" where none is known.
        index: whether the index is as it should be.
    """

    out: Path
    manifest: Manifest
    manifest_lost: str | None = None
    moves: dict[Path, str] = field(default_factory=dict)
    entries: dict[int, UnitEntry] = field(default_factory=dict)
    rebuilt: dict[int, str] = field(default_factory=dict)
    lost_rejects: list[int] = field(default_factory=list)
    redo: list[int] = field(default_factory=list)
    plan: str = "whole"
    tokenizer: Path | str | None = None
    index: bool = True

    @property
    def sound(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.manifest_lost or self.moves or self.rebuilt or self.lost_rejects) and (
            self.plan != "missing" and self.tokenizer is None and self.index
        )


def require_something(out: Path) -> list[Path]:
    """The shards in a set's folder.

    Raises:
        LabelSetError: there are none, and no manifest.
    """
    shards = sorted((out / "shards").glob("*.parquet"))
    if not shards and not (out / MANIFEST).is_file():
        raise LabelSetError(
            "no label set here: neither manifest.json nor shards",
            path=out,
            hint="give the folder that `labeler label --out` wrote",
        )
    return shards


def diagnose(out: Path, model: Path | None) -> Diagnosis:
    """Look at every file of a set.

    Args:
        out: the set's folder.
        model: a checkpoint to copy tokenizer files from, if they are needed.

    Raises:
        SoftshardsError: there is no label set, or nothing to rebuild it from.
    """
    shards = require_something(out)
    footers = {path: read_footer(path) for path in shards}
    lost = None
    try:
        manifest = read_manifest(out)
    except LabelSetError as error:
        lost = error.what
        manifest = salvaged_manifest(out, [f for f in footers.values() if f is not None])
    found = Diagnosis(out=out, manifest=manifest, manifest_lost=lost)
    if lost is not None and (out / MANIFEST).exists():
        found.moves[out / MANIFEST] = lost
    _plan(found)
    index = _index(found)
    for unit in range(manifest.planned_units):
        _unit(found, unit, footers.get(out / shard_name(unit)), index.get(shard_name(unit)))
    _strays(found, shards)
    _tokenizer(found, model)
    if found.redo or found.rebuilt or found.lost_rejects or lost is not None:
        found.index = False
    return found


def _plan(found: Diagnosis) -> None:
    manifest = found.manifest
    if manifest.plan is None:
        found.plan = "none"
        return
    try:
        open_plan(found.out, manifest.plan).close()
    except LabelSetError as error:
        found.plan = "missing"
        if (found.out / manifest.plan.path).exists():
            found.moves[found.out / manifest.plan.path] = error.what


def _index(found: Diagnosis) -> dict[str, Ranges]:
    """The byte ranges that the index knows; without a manifest only their own checksums vouch."""
    out, manifest = found.out, found.manifest
    pages = manifest.index_pages
    if found.manifest_lost is not None:
        files = sorted((out / INDEX).glob("page-*.parquet"))
        pages = tuple(
            FileDigest(path=f"{INDEX}/{file.name}", sha256=sha256_file(file)) for file in files
        )
    known: dict[str, Ranges] = {}
    for page in pages:
        try:
            known |= read_index(out, [page])
        except (LabelSetError, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            found.index = False
            if (out / page.path).exists():
                found.moves[out / page.path] = "an index page that was altered"
    if found.manifest_lost is None and manifest.status == "complete":
        found.index &= len(known) == manifest.planned_units
    return known


def _unit(found: Diagnosis, unit: int, footer: Footer | None, indexed: Ranges | None) -> None:
    """Decide on one unit: good as it is, good with a new entry, or to be done again."""
    out, shard = found.out, found.out / shard_name(unit)
    path, entry = entry_path(out, unit), None
    try:
        entry = read_entry(out, unit)
    except LabelSetError as error:
        found.moves[path] = error.what
    if entry is None and not shard.exists() and path not in found.moves:
        found.redo.append(unit)  # it was never done, or was lost whole
        return
    reason, ranges, source = _checked(found, unit, footer, entry, indexed)
    if reason is not None:
        found.redo.append(unit)
        if shard.exists():
            found.moves[shard] = reason
        if path.exists():
            found.moves.setdefault(path, f"its unit is to be done again: {reason}")
        return
    if entry is None:
        assert ranges is not None
        entry = new_entry(out, unit, ranges, source)
        found.rebuilt[unit] = source
    found.entries[unit] = entry
    rejects = rejects_path(out, unit)
    if not rejects.is_file() or sha256_file(rejects) != entry.rejects_sha256:
        found.lost_rejects.append(unit)
        if rejects.is_file():
            found.moves[rejects] = "rejects that are not those of the journal"
        if path.exists() and unit not in found.rebuilt:
            found.moves[path] = "its rejects are lost"


def _checked(
    found: Diagnosis,
    unit: int,
    footer: Footer | None,
    entry: UnitEntry | None,
    indexed: Ranges | None,
) -> tuple[str | None, Ranges | None, str]:
    """(why the unit's shard is of no use, its byte ranges, what they were checked against)."""
    shard, manifest = found.out / shard_name(unit), found.manifest
    if not shard.exists():
        return "its shard is missing", None, ""
    if footer is None:
        return "its footer cannot be read", None, ""
    expected = {"identity_digest": manifest.identity_digest, "codec": manifest.codec, "unit": unit}
    for name, value in expected.items():
        if footer[name] != value:
            return f"another set's or unit's: its {name} is {footer[name]!r}", None, ""
    journaled = None if entry is None else (entry.row_groups, entry.footer)
    for source, ranges in (("the journal", journaled), ("the index", indexed)):
        if ranges is not None:
            good = has_ranges(shard, ranges)
            return None if good else f"its bytes are not those of {source}", ranges, source
    checked = consistent_ranges(shard, manifest)
    if isinstance(checked, str):
        return checked, None, ""
    return None, checked, FROM_FILE


def _strays(found: Diagnosis, shards: list[Path]) -> None:
    """What no reader should come across: shards of no unit, other plans, temporary files."""
    out, manifest = found.out, found.manifest
    units = {out / shard_name(unit) for unit in range(manifest.planned_units)}
    found.moves |= {path: "a shard of no unit of this set" for path in shards if path not in units}
    plan = None if manifest.plan is None else manifest.plan.path
    for path in sorted(out.iterdir()):
        if is_plan(path.name) and path.name != plan:
            found.moves[path] = "a plan that the manifest does not name"
    for path in sorted(out.glob(f"**/{TMP_PREFIX}*")):
        if QUARANTINE not in path.relative_to(out).parts:
            found.moves[path] = "what a killed writer left"


def _tokenizer(found: Diagnosis, model: Path | None) -> None:
    manifest = found.manifest
    try:
        check_tokenizer(found.out, manifest)
    except (LabelSetError, OSError, ValueError):
        named = model or manifest.provenance.get("teacher")
        found.tokenizer = ""
        if named is not None:
            try:
                if tokenizer_digest(Path(str(named))) == manifest.identity.tokenizer:
                    found.tokenizer = Path(str(named))
            except (OSError, ValueError):
                return
