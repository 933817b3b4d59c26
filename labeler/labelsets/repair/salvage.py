"""Rebuild the records of a damaged label set from what its shards and old files still hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import pyarrow as pa
from pydantic import ValidationError

from schemas import Identity, Manifest, SoftshardsError, __version__, to_plain
from schemas.arrow import FOOTER_KEY
from schemas.errors import first_line
from schemas.file_names import JOURNAL, TOKENIZER, is_plan, shard_name
from schemas.fingerprint import TOKENIZER_FILES, sha256_bytes, sha256_file
from schemas.journal import ByteRange, HiddenPart, UnitEntry, rejects_path
from schemas.json_values import parse_object
from schemas.manifest import MANIFEST, ROUNDED_BY, FileDigest, StatesRecord
from schemas.parquet_sizes import checked_parquet, read_parquet
from schemas.plan import open_plan
from schemas.shard import byte_ranges
from schemas.size_limits import LARGEST_UNITS
from schemas.validate import validate_rows
from schemas.version import COMPACT_1, PLAIN_1

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
        with checked_parquet(shard) as file:
            content = parse_object((file.metadata.metadata or {})[FOOTER_KEY])
        identity = Identity.model_validate(content["identity"])
        texts = [content[name] for name in ("identity_digest", "codec")]
        unit = content["unit"]
        is_footer = all(isinstance(text, str) for text in texts) and isinstance(unit, int)
        if not is_footer or identity.digest != content["identity_digest"]:
            return None
    except Exception:  # readers raise many types on damaged bytes
        return None
    return cast(Footer, content)


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
    try:
        with checked_parquet(shard) as reader:
            for number in range(reader.num_row_groups):
                stored = reader.read_row_group(number)
                table = to_plain(stored.replace_schema_metadata(reader.metadata.metadata))
                for finding in validate_rows(table, manifest):
                    return f"row group {number}, {finding}"
        return byte_ranges(shard)
    except Exception as error:  # as in `read_footer`
        return first_line(error)


def rebuild_entry(
    out: Path, unit: int, ranges: Ranges, source: str, hidden: HiddenPart | None
) -> UnitEntry:
    """Return a journal entry for a shard that lost its own.

    Args:
        out: the set's folder.
        unit: the shard's unit.
        ranges: the shard's byte ranges.
        source: what the ranges were checked against.
        hidden: byte ranges of its hidden states, if it has any.
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
        rejects=_count_rows(rejects) if has_rejects else 0,
        row_groups=tuple(groups),
        footer=footer,
        hidden=hidden,
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
    except (OSError, ValueError, pa.ArrowException):
        return False
    return True


def rebuild_manifest(
    directory: Path,
    footers: Iterable[Footer],
    states: Callable[[dict[str, Any], Identity], StatesRecord | None],
) -> Manifest:
    """Return a manifest for a set that lost its own: `running`, and without an index.

    The identity comes from the shards' footers, which hold all of it. Everything else comes from
    the old file, as far as it can be parsed.

    Args:
        directory: the set's folder.
        footers: the footers of its shards.
        states: returns the record of hidden states, of the old file and the identity.

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
        identity, codec = _old_identity(old, directory), str(old.get("codec", ""))
    plan = _find_plan(directory, old)
    if plan is None:
        units = [f["unit"] + 1 for f in footers if f["identity_digest"] == identity.digest]
        planned = max([0, *(unit for unit in units if unit <= LARGEST_UNITS)])
    else:
        with open_plan(directory, plan) as file:
            planned = min(file.num_row_groups, LARGEST_UNITS)
    provenance = old.get("provenance")
    if not isinstance(provenance, dict):
        provenance = _rebuilt_provenance(directory, has_plan=plan is not None, codec=codec)
    manifest = Manifest(
        codec=codec,
        status="running",
        identity=identity,
        identity_digest=identity.digest,
        plan=plan,
        planned_units=planned,
        tokenizer_files=tokenizer_digests(directory),
        states=states(old, identity),
        provenance=provenance,
    )
    return manifest.model_copy(update={"format_version": manifest.written_version})


def _rebuilt_provenance(directory: Path, *, has_plan: bool, codec: str) -> dict[str, object]:
    rejects = sorted((directory / JOURNAL).glob("plan*.rejects.parquet"))
    provenance: dict[str, object] = {
        "softshards": __version__,
        "plan_rejects": sum(_count_rows(path) for path in rejects),
        "rebuilt": "the manifest was lost: the identity comes from the shards",
    }
    if has_plan:
        return provenance
    derived = {"how": "repair"}
    if codec == PLAIN_1:  # its labels may come from a compact set: nothing else tells
        derived[ROUNDED_BY] = COMPACT_1
    return provenance | {"derived": derived}


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
        if is_plan(named.path) and _is_good_plan(directory, named):
            return named
    except ValidationError:
        pass
    plans = sorted(path for path in directory.iterdir() if is_plan(path.name) and path.is_file())
    for path in reversed(plans):
        found = FileDigest(path=path.name, sha256=sha256_file(path))
        if _is_good_plan(directory, found):
            return found
    return None


def _is_good_plan(directory: Path, plan: FileDigest) -> bool:
    """Return whether a plan can be read to its end, with its page checksums verified."""
    try:
        with open_plan(directory, plan) as reader:
            for number in range(reader.num_row_groups):
                reader.read_row_group(number)
    except Exception:  # as in `read_footer`
        return False
    return True


def _old_manifest(directory: Path) -> dict[str, Any]:
    """Return the old manifest's JSON object; empty if it cannot be parsed."""
    try:
        return parse_object((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}


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
        with checked_parquet(path) as file:
            return int(file.metadata.num_rows)
    except Exception:  # as in `read_footer`
        return 0
