"""What a damaged label set still says of itself: shards by their footers, a manifest from those."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas import Identity, Manifest, SoftshardsError, __version__, to_plain
from schemas.arrow import FOOTER_KEY
from schemas.errors import first_line
from schemas.fingerprint import TOKENIZER_FILES, sha256_bytes, sha256_file
from schemas.invariants import validate_table
from schemas.journal import JOURNAL, ByteRange, UnitEntry, rejects_path, shard_name
from schemas.labelset import TOKENIZER
from schemas.manifest import MANIFEST, FileDigest
from schemas.plan import is_plan
from schemas.shard import byte_ranges

Footer = dict[str, Any]
Ranges = tuple[Sequence[ByteRange], ByteRange]


def read_footer(shard: Path) -> Footer | None:
    """What a shard's footer says of it; None where there is no footer that can be read."""
    try:
        metadata = pq.read_metadata(shard).metadata or {}
        footer = json.loads(metadata[FOOTER_KEY])
        identity = Identity.model_validate(footer["identity"])
    except Exception:  # damaged bytes make readers raise whatever they like
        return None
    return footer if identity.digest == footer["identity_digest"] else None


def has_ranges(shard: Path, ranges: Ranges) -> bool:
    """Whether a file is made of these stretches, to the byte."""
    groups, footer = ranges
    if shard.stat().st_size != footer.stop:
        return False
    with shard.open("rb") as stream:
        return all(
            sha256_bytes(stream.read(part.stop - part.start)) == part.sha256
            for part in (*groups, footer)
        )


def consistent_ranges(shard: Path, manifest: Manifest) -> Ranges | str:
    """Hash a shard that nothing else vouches for, if it contradicts itself nowhere; else say where.

    Its page checksums hold, and every row keeps every invariant of docs/format.md.
    """
    identity = manifest.identity
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as reader:
            for number in range(reader.num_row_groups):
                stored = reader.read_row_group(number)
                table = to_plain(stored.replace_schema_metadata(reader.metadata.metadata))
                for finding in validate_table(
                    table,
                    vocab_size=identity.vocab_size,
                    k=identity.k,
                    codec=manifest.codec,
                    draws=identity.draws,
                ):
                    return f"row group {number}, {finding}"
        return byte_ranges(shard)
    except Exception as error:  # as in `read_footer`
        return first_line(error)


def new_entry(out: Path, unit: int, ranges: Ranges, source: str) -> UnitEntry:
    """A journal entry for a shard whose own is lost; `source` is what vouches for its ranges."""
    groups, footer = ranges
    rejects = rejects_path(out, unit)
    whole = _readable(rejects)
    return UnitEntry(
        unit=unit,
        shard=shard_name(unit),
        rows=sum(group.rows for group in groups),
        labels=sum(group.labels for group in groups),
        tokens=sum(group.tokens for group in groups),
        rejects=pq.read_metadata(rejects).num_rows if whole else 0,
        row_groups=tuple(groups),
        footer=footer,
        rejects_sha256=sha256_file(rejects) if whole else "",
        provenance=_unknown_provenance(source),
    )


def _unknown_provenance(source: str) -> dict[str, Any]:
    """What a rebuilt entry says of a run whose record is lost."""
    unknown = dict.fromkeys(("engine", "engine_version", "device"), "unknown")
    return unknown | {
        "softshards": __version__,
        "settings": {},
        "engine_seconds": 0.0,
        "energy_joules": None,
        "energy_source": None,
        "rebuilt": f"the entry was lost; the shard was checked against {source}",
    }


def _readable(path: Path) -> bool:
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return True


def salvaged_manifest(directory: Path, footers: Iterable[Footer]) -> Manifest:
    """A manifest for a set that has lost its own, `running` and without an index.

    What decides the labels comes from the shards' footers, which carry it whole. What the old
    file still says, if it can be parsed, is taken where nothing better is known.

    Raises:
        SoftshardsError: neither the shards nor the old file name the teacher.
    """
    old = _old_manifest(directory)
    known = [(f["identity_digest"], f["codec"]) for f in footers]
    if known:
        ((digest, codec), _), *_ = Counter(known).most_common(1)
        raw = next(f["identity"] for f in footers if f["identity_digest"] == digest)
        identity = Identity.model_validate(raw)
    else:
        identity, codec = _old_identity(old, directory), old.get("codec", "")
    plan = _plan(directory, old)
    units = [int(f["unit"]) + 1 for f in footers if f["identity_digest"] == identity.digest]
    provenance = old.get("provenance") if isinstance(old.get("provenance"), dict) else None
    if provenance is None:
        rejects = sorted((directory / JOURNAL).glob("plan*.rejects.parquet"))
        provenance = {
            "softshards": __version__,
            "plan_rejects": sum(_rows(path) for path in rejects),
            "rebuilt": "the manifest was lost: the identity is the shards' own",
        }
        if plan is None:
            provenance["derived"] = {"how": "repair"}
    planned = max([0, *units])
    if plan is not None:
        planned = pq.read_metadata(directory / plan.path).num_row_groups
    return Manifest(
        codec=codec,
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=planned,
        tokenizer_files=tokenizer_files(directory),
        provenance=provenance,
    )


def tokenizer_files(directory: Path) -> tuple[FileDigest, ...]:
    """The tokenizer's files that are there, as the manifest lists them."""
    names = [n for n in TOKENIZER_FILES if (directory / TOKENIZER / n).is_file()]
    return tuple(
        FileDigest(path=f"{TOKENIZER}/{n}", sha256=sha256_file(directory / TOKENIZER / n))
        for n in names
    )


def whole_plan(path: Path) -> bool:
    """Whether a plan can be read to its end, checksums and all."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as reader:
            for number in range(reader.num_row_groups):
                reader.read_row_group(number)
    except Exception:  # as in `read_footer`
        return False
    return True


def _plan(directory: Path, old: dict[str, Any]) -> FileDigest | None:
    """The plan that the old manifest named if it is as it was; else the newest that is whole."""
    try:
        named = FileDigest.model_validate(old.get("plan"))
        if sha256_file(directory / named.path) == named.sha256:
            return named
    except (ValidationError, OSError):
        pass
    plans = sorted(path for path in directory.iterdir() if is_plan(path.name))
    for path in reversed(plans):
        if whole_plan(path):
            return FileDigest(path=path.name, sha256=sha256_file(path))
    return None


def _old_manifest(directory: Path) -> dict[str, Any]:
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _old_identity(old: dict[str, Any], directory: Path) -> Identity:
    try:
        identity = Identity.model_validate(old.get("identity"))
        if identity.digest == old.get("identity_digest"):
            return identity
    except ValidationError:
        pass
    raise SoftshardsError(
        "there is nothing to rebuild the manifest from: no shard's footer can be read",
        path=directory,
        hint="label again into a new folder",
    )


def _rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except Exception:  # as in `read_footer`
        return 0
