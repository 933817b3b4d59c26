"""Rebuild the records of a damaged label set from what its shards and old files still hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas import Identity, Manifest, SoftshardsError, __version__, to_plain
from schemas.arrow import FOOTER_KEY
from schemas.errors import first_line
from schemas.file_names import JOURNAL, TOKENIZER, is_plan, shard_name
from schemas.fingerprint import TOKENIZER_FILES, sha256_bytes, sha256_file
from schemas.invariants import validate_table
from schemas.journal import ByteRange, UnitEntry, rejects_path
from schemas.manifest import MANIFEST, FileDigest
from schemas.parquet_sizes import read_parquet
from schemas.shard import byte_ranges

Ranges = tuple[Sequence[ByteRange], ByteRange]
"""Byte ranges of a shard: its row groups, and its footer."""


class Footer(TypedDict):
    """The JSON object in a shard's footer, as far as a repair needs it."""

    identity: dict[str, object]
    identity_digest: str
    codec: str
    unit: int


def read_footer(shard: Path) -> Footer | None:
    """Return the JSON object in a shard's footer; None if it cannot be read."""
    try:
        metadata = pq.read_metadata(shard).metadata or {}
        footer: Footer = json.loads(metadata[FOOTER_KEY])
        identity = Identity.model_validate(footer["identity"])
    except Exception:  # readers raise many types on damaged bytes
        return None
    return footer if identity.digest == footer["identity_digest"] else None


def has_ranges(shard: Path, ranges: Ranges) -> bool:
    """Return whether a file consists of exactly these byte ranges."""
    groups, footer = ranges
    if shard.stat().st_size != footer.stop:
        return False
    with shard.open("rb") as stream:
        return all(
            sha256_bytes(stream.read(part.stop - part.start)) == part.sha256
            for part in (*groups, footer)
        )


def hash_consistent_shard(shard: Path, manifest: Manifest) -> Ranges | str:
    """Hash a shard that no hash is left for, or return what is wrong with it.

    Its page checksums must hold, and every row must keep the invariants of docs/format.md.
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


def rebuild_entry(out: Path, unit: int, ranges: Ranges, source: str) -> UnitEntry:
    """Return a journal entry for a shard that lost its own.

    Args:
        out: the set's folder.
        unit: the shard's unit.
        ranges: the shard's byte ranges.
        source: what the ranges were checked against.
    """
    groups, footer = ranges
    rejects = rejects_path(out, unit)
    has_rejects = _is_readable(rejects)
    return UnitEntry(
        unit=unit,
        shard=shard_name(unit),
        rows=sum(group.rows for group in groups),
        labels=sum(group.labels for group in groups),
        tokens=sum(group.tokens for group in groups),
        rejects=pq.read_metadata(rejects).num_rows if has_rejects else 0,
        row_groups=tuple(groups),
        footer=footer,
        rejects_sha256=sha256_file(rejects) if has_rejects else "",
        provenance=_unknown_provenance(source),
    )


def _unknown_provenance(source: str) -> dict[str, object]:
    """Return the provenance of a unit whose record is lost."""
    return {
        "engine": "unknown",
        "engine_version": "unknown",
        "device": "unknown",
        "softshards": __version__,
        "settings": {},
        "engine_seconds": 0.0,
        "energy_joules": None,
        "energy_source": None,
        "rebuilt": f"the entry was lost; the shard was checked against {source}",
    }


def _is_readable(path: Path) -> bool:
    try:
        read_parquet(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def rebuild_manifest(directory: Path, footers: Iterable[Footer]) -> Manifest:
    """Return a manifest for a set that lost its own: `running`, and without an index.

    The identity comes from the shards' footers, which hold all of it. Everything else comes from
    the old file, as far as it can be parsed.

    Args:
        directory: the set's folder.
        footers: the footers of its shards.

    Raises:
        SoftshardsError: neither the shards nor the old file have an identity.
    """
    footers = list(footers)
    old = _old_manifest(directory)
    known = [(f["identity_digest"], f["codec"]) for f in footers]
    if known:
        ((digest, codec), _), *_ = Counter(known).most_common(1)
        raw = next(f["identity"] for f in footers if f["identity_digest"] == digest)
        identity = Identity.model_validate(raw)
    else:
        identity, codec = _old_identity(old, directory), old.get("codec", "")
    plan = _find_plan(directory, old)
    if plan is None:
        units = [int(f["unit"]) + 1 for f in footers if f["identity_digest"] == identity.digest]
        planned = max([0, *units])
    else:
        planned = pq.read_metadata(directory / plan.path).num_row_groups
    provenance = old.get("provenance")
    if not isinstance(provenance, dict):
        provenance = _rebuilt_provenance(directory, has_plan=plan is not None)
    return Manifest(
        codec=codec,
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=planned,
        tokenizer_files=tokenizer_digests(directory),
        provenance=provenance,
    )


def _rebuilt_provenance(directory: Path, *, has_plan: bool) -> dict[str, object]:
    rejects = sorted((directory / JOURNAL).glob("plan*.rejects.parquet"))
    provenance: dict[str, object] = {
        "softshards": __version__,
        "plan_rejects": sum(_count_rows(path) for path in rejects),
        "rebuilt": "the manifest was lost: the identity comes from the shards",
    }
    return provenance if has_plan else provenance | {"derived": {"how": "repair"}}


def tokenizer_digests(directory: Path) -> tuple[FileDigest, ...]:
    """Hash the tokenizer files of a set, as its manifest lists them."""
    names = [n for n in TOKENIZER_FILES if (directory / TOKENIZER / n).is_file()]
    return tuple(
        FileDigest(path=f"{TOKENIZER}/{n}", sha256=sha256_file(directory / TOKENIZER / n))
        for n in names
    )


def _find_plan(directory: Path, old: dict[str, Any]) -> FileDigest | None:
    """Return the plan that the old manifest names if it is unaltered, else the newest good one."""
    try:
        named = FileDigest.model_validate(old.get("plan"))
        if sha256_file(directory / named.path) == named.sha256:
            return named
    except (ValidationError, OSError):
        pass
    plans = sorted(path for path in directory.iterdir() if is_plan(path.name))
    for path in reversed(plans):
        if _is_good_plan(path):
            return FileDigest(path=path.name, sha256=sha256_file(path))
    return None


def _is_good_plan(path: Path) -> bool:
    """Return whether a plan can be read to its end, with its page checksums verified."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as reader:
            for number in range(reader.num_row_groups):
                reader.read_row_group(number)
    except Exception:  # as in `read_footer`
        return False
    return True


def _old_manifest(directory: Path) -> dict[str, Any]:
    """Return the old manifest's JSON object; empty if it cannot be parsed."""
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


def _count_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except Exception:  # as in `read_footer`
        return 0
