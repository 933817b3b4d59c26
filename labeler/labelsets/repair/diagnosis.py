"""Find out what is damaged in a label set's folder, and what can be rebuilt; change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from labeler.labeling.teacher.locate_teacher import locate_named
from labeler.labelsets.repair.hidden_salvage import (
    check_hidden_part,
    hidden_parts,
    lost_files,
    rebuild_states,
    require_hidden_states,
)
from labeler.labelsets.repair.salvage import (
    Footer,
    Ranges,
    has_ranges,
    hash_consistent_shard,
    read_footer,
    rebuild_entry,
    rebuild_manifest,
)
from schemas import LabelSetError, Manifest, SoftshardsError
from schemas.atomic import TMP_PREFIX
from schemas.errors import first_line
from schemas.file_names import (
    HIDDEN,
    INDEX,
    hidden_name,
    is_hidden_page,
    is_index_page,
    is_plan,
    shard_name,
)
from schemas.fingerprint import sha256_bytes, sha256_file, tokenizer_digest
from schemas.index import read_index
from schemas.journal import (
    ByteRange,
    HiddenPart,
    UnitEntry,
    entry_path,
    journaled_units,
    read_entry,
    rejects_path,
    unit_rejects,
)
from schemas.journal_batches import batch_path
from schemas.labelset import check_tokenizer
from schemas.manifest import MANIFEST, FileDigest, read_manifest
from schemas.plan import open_plan
from schemas.set_files import QUARANTINE
from schemas.set_paths import require_no_links

FROM_FILE = "the file itself"


@dataclass(kw_only=True)
class Diagnosis:
    """The damage in a label set, and what `labeler repair` has to do.

    Attributes:
        out: the set's folder.
        manifest: the manifest to write, before the set is closed.
        manifest_lost: why the manifest on disk cannot be used; None if it can.
        moves: files to move to quarantine, with the reason.
        entries: journal entries of the good units.
        rebuilt: units in `entries` whose entry was lost, with what their hashes were checked
            against.
        lost_rejects: units whose rejects are lost.
        redo: units whose labels are lost.
        plan: `missing` includes an altered one; `none` is for a set that needs no plan.
        tokenizer_lost: tokenizer files are missing or altered.
        tokenizer_source: folder to copy the tokenizer from; None if no such folder is known.
        index_good: the index is complete and unaltered.
        lost_files: files of hidden states in `head/` that are missing or altered.
    """

    out: Path
    manifest: Manifest
    manifest_lost: str | None = None
    moves: dict[Path, str] = field(default_factory=dict)
    entries: dict[int, UnitEntry] = field(default_factory=dict)
    rebuilt: dict[int, str] = field(default_factory=dict)
    lost_rejects: list[int] = field(default_factory=list)
    redo: list[int] = field(default_factory=list)
    plan: Literal["good", "missing", "none"] = "good"
    tokenizer_lost: bool = False
    tokenizer_source: Path | None = None
    index_good: bool = True
    lost_files: list[str] = field(default_factory=list)

    @property
    def is_undamaged(self) -> bool:
        """There is nothing to repair."""
        damaged = self.manifest_lost or self.moves or self.rebuilt or self.lost_rejects
        return not (damaged or self.lost_files) and (
            self.plan != "missing" and not self.tokenizer_lost and self.index_good
        )

    @property
    def rebuilds_plan(self) -> bool:
        """The plan is lost, and the shards hold all of it.

        They do not hold the ids that an input asked for, nor spans of which labels were left out.
        """
        identity = self.manifest.identity
        kept = identity.keep_positions is not None and identity.mode == "score"
        has_all = identity.ids_from is None and not kept
        return self.plan == "missing" and not self.redo and has_all


def require_label_set(out: Path) -> list[Path]:
    """Return the shards in a set's folder.

    Raises:
        LabelSetError: the folder has neither shards nor a manifest.
    """
    require_no_links(out)  # a repair would write through them
    shards = sorted((out / "shards").glob("*.parquet"))
    if not shards and not (out / MANIFEST).is_file():
        raise LabelSetError(
            "no label set here: neither manifest.json nor shards",
            path=out,
            hint="give the folder that `labeler label --out` wrote",
        )
    return shards


def diagnose(out: Path, model: Path | None) -> Diagnosis:
    """Check every file of a set.

    Args:
        out: the set's folder.
        model: checkpoint to copy tokenizer files from, if they are needed.

    Raises:
        SoftshardsError: there is no label set, or nothing to rebuild it from.
    """
    shards = require_label_set(out)
    footers = {path: read_footer(path) for path in shards}
    lost = None
    try:
        manifest = read_manifest(out)
    except LabelSetError as error:
        lost = error.what
        known_footers = [f for f in footers.values() if f is not None]
        manifest = rebuild_manifest(out, known_footers, partial(rebuild_states, out))
    require_hidden_states(out, manifest, shards)
    found = Diagnosis(out=out, manifest=manifest, manifest_lost=lost)
    if lost is not None and (out / MANIFEST).exists():
        found.moves[out / MANIFEST] = lost
    _check_plan(found)
    index = _check_index(found)
    known = {*journaled_units(out), *(n for path in shards if (n := _unit_of(path)) is not None)}
    for unit in range(manifest.planned_units):
        if unit in known:
            footer = footers.get(out / shard_name(unit))
            _check_unit(found, unit, footer, index)
        else:
            found.redo.append(unit)  # never labeled, or lost altogether
    _find_strays(found, shards)
    found.lost_files = list(lost_files(out, manifest))
    _check_tokenizer(found, model)
    if found.redo or found.rebuilt or found.lost_rejects or lost is not None:
        found.index_good = False
    return found


def _unit_of(shard: Path) -> int | None:
    """Return the number of the unit whose file this is by its name; None for another file."""
    digits = shard.stem.removeprefix("part-")
    unit = int(digits) if digits.isdecimal() and len(digits) < 16 else -1
    return unit if unit >= 0 and shard.name == Path(shard_name(unit)).name else None


def _check_plan(found: Diagnosis) -> None:
    manifest = found.manifest
    if manifest.plan is None:
        found.plan = "none"
        return
    try:
        with open_plan(found.out, manifest.plan) as plan:
            units = plan.num_row_groups
        if units != manifest.planned_units:
            raise LabelSetError(f"it has {units} units, the manifest {manifest.planned_units}")
    except LabelSetError as error:
        found.plan = "missing"
        if (found.out / manifest.plan.path).exists():
            found.moves[found.out / manifest.plan.path] = error.what


def _check_index(found: Diagnosis) -> dict[str, Ranges]:
    """Return the byte ranges in the good index pages, by shard or hidden part.

    Without a manifest there are no hashes of pages: they are checked by their own checksums.
    """
    out, manifest = found.out, found.manifest
    pages = (*manifest.index_pages, *(manifest.hidden_pages or ()))
    if found.manifest_lost is not None:
        files = [
            file
            for file in sorted((out / INDEX).glob("*.parquet"))
            if is_index_page(name := f"{INDEX}/{file.name}") or is_hidden_page(name)
        ]
        pages = tuple(
            FileDigest(path=f"{INDEX}/{file.name}", sha256=sha256_file(file)) for file in files
        )
    known: dict[str, tuple[list[ByteRange], ByteRange]] = {}
    units = hidden_units = 0
    for page in pages:
        try:
            of_states = is_hidden_page(page.path)
            groups = read_index(out, [page], hidden=of_states)
            units += 0 if of_states else groups.n_shards
            hidden_units += groups.n_shards if of_states else 0
            for group in groups:
                known.setdefault(group.shard, ([], group.footer))[0].append(group.bytes)
        except (LabelSetError, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            found.index_good = False
            if (out / page.path).exists():
                found.moves[out / page.path] = "the index page was altered"
    if found.manifest_lost is None and manifest.status == "complete":
        found.index_good &= units == manifest.planned_units
        if manifest.states is not None:
            found.index_good &= hidden_units == manifest.planned_units
    return {**known}


def _check_unit(
    found: Diagnosis, unit: int, footer: Footer | None, index: dict[str, Ranges]
) -> None:
    """Sort a unit: good, good with a rebuilt entry, or to be labeled again."""
    out, shard, part = found.out, found.out / shard_name(unit), found.out / hidden_name(unit)
    path, entry = entry_path(out, unit), None
    try:
        entry = read_entry(out, unit)
    except LabelSetError as error:
        # A batch that cannot be read moves as a whole; of a readable one, other units stay good.
        file = path if path.exists() else batch_path(out, unit)
        found.moves[file] = error.what
    reason, ranges, source = _check_shard(found, unit, footer, entry, index.get(shard_name(unit)))
    hidden: HiddenPart | None = None
    if reason is None:
        indexed = index.get(hidden_name(unit))
        reason, hidden = check_hidden_part(out, found.manifest, unit, entry, indexed)
    if reason is None and (entry is None or entry.hidden != hidden):
        assert ranges is not None
        try:
            entry = rebuild_entry(out, unit, ranges, source, hidden)
            found.rebuilt[unit] = source
        except ValueError as error:  # shard and hidden states do not belong together
            reason = first_line(error)
    if reason is not None:
        found.redo.append(unit)
        for file in (shard, part):
            if file.exists():
                found.moves[file] = reason
        if path.exists():
            found.moves.setdefault(path, f"its unit must be labeled again: {reason}")
        return
    assert entry is not None
    found.entries[unit] = entry
    rejects = rejects_path(out, unit)
    stored = _rejects_of(found, unit)
    if stored is None or sha256_bytes(stored) != entry.rejects_sha256:
        found.lost_rejects.append(unit)
        if rejects.is_file():
            found.moves[rejects] = "the rejects differ from the journal's"
        if path.exists() and unit not in found.rebuilt:
            found.moves[path] = "its rejects are lost"


def _rejects_of(found: Diagnosis, unit: int) -> bytes | None:
    try:
        return unit_rejects(found.out, unit)
    except LabelSetError:
        return None


def _check_shard(
    found: Diagnosis,
    unit: int,
    footer: Footer | None,
    entry: UnitEntry | None,
    indexed: Ranges | None,
) -> tuple[str | None, Ranges | None, str]:
    """Return (why the shard cannot be used, its byte ranges, what they were checked against)."""
    shard, manifest = found.out / shard_name(unit), found.manifest
    if not shard.exists():
        return "its shard is missing", None, ""
    if footer is None:
        return "its footer cannot be read", None, ""
    for name, actual, expected in (
        ("identity_digest", footer["identity_digest"], manifest.identity_digest),
        ("codec", footer["codec"], manifest.codec),
        ("unit", footer["unit"], unit),
    ):
        if actual != expected:
            return f"it belongs to another set or unit: {name} is {actual!r}", None, ""
    journaled = None if entry is None else (entry.row_groups, entry.footer)
    for source, ranges in (("the journal", journaled), ("the index", indexed)):
        if ranges is not None:
            good = has_ranges(shard, ranges)
            return None if good else f"its bytes differ from {source}", ranges, source
    checked = hash_consistent_shard(shard, manifest)
    if isinstance(checked, str):
        return checked, None, ""
    return None, checked, FROM_FILE


def _find_strays(found: Diagnosis, shards: list[Path]) -> None:
    """Find files that no reader should see: those of no unit, other plans, temporary files."""
    out, manifest = found.out, found.manifest
    for path in [*shards, *hidden_parts(out)]:
        unit = _unit_of(path)
        if unit is None or unit >= manifest.planned_units:
            found.moves[path] = "the set has no such unit"
        elif path.parent.name == HIDDEN and manifest.identity.states is None:
            found.moves[path] = "the set has no hidden states"
    plan = None if manifest.plan is None else manifest.plan.path
    for path in sorted(out.iterdir()):
        if is_plan(path.name) and path.name != plan:
            found.moves[path] = "the manifest names another plan"
    for path in sorted(out.glob(f"**/{TMP_PREFIX}*")):
        if QUARANTINE not in path.relative_to(out).parts:
            found.moves[path] = "a killed writer left it"


def _check_tokenizer(found: Diagnosis, model: Path | None) -> None:
    manifest = found.manifest
    try:
        check_tokenizer(found.out, manifest)
        return
    except (LabelSetError, OSError, ValueError):
        found.tokenizer_lost = True
    try:
        located = locate_named(manifest.provenance, model, None, weights=False)
    except SoftshardsError:
        if model is not None:
            raise
        return  # the set's own teacher is out of reach
    if located is None:
        return
    source = located.folder
    try:
        if tokenizer_digest(source) == manifest.identity.tokenizer:
            found.tokenizer_source = source
    except (OSError, ValueError):
        return
