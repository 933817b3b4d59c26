"""Find out which hidden states of a damaged set are good, and rebuild what records them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from labeler.labelsets.repair.salvage import Ranges, has_ranges
from schemas import Identity, LabelSetError, Manifest
from schemas.arrow import FOOTER_KEY
from schemas.errors import first_line
from schemas.file_names import FINAL, HEAD_FILE, HIDDEN, basis_name, hidden_name, shard_name
from schemas.fingerprint import sha256_file
from schemas.hidden_part import HIDDEN_KEYS, RESTORE, check_hidden_footer, hidden_ranges
from schemas.journal import HiddenPart, UnitEntry
from schemas.manifest import ExtensibleModel, FileDigest, StatesRecord
from schemas.parquet_sizes import checked_parquet, read_parquet
from schemas.state_codec import decode_stored, label_offsets
from schemas.stored_head import checked_file


def hidden_parts(out: Path) -> list[Path]:
    """Return the files in `hidden/`."""
    return sorted((out / HIDDEN).glob("*.parquet"))


def require_hidden_states(out: Path, manifest: Manifest, shards: list[Path]) -> None:
    """Refuse to repair a set whose hidden states were all deleted: all units would be redone.

    Raises:
        LabelSetError: there are shards and no hidden states.
    """
    if manifest.identity.states is not None and shards and not hidden_parts(out):
        what = f"{HIDDEN}/ is empty or missing: the hidden states of all units are gone"
        raise LabelSetError(what, path=out, hint=RESTORE)


def check_hidden_part(
    out: Path, manifest: Manifest, unit: int, entry: UnitEntry | None, indexed: Ranges | None
) -> tuple[str | None, HiddenPart | None]:
    """Return why a unit's hidden states cannot be used, or their byte ranges.

    Args:
        out: the set's folder.
        manifest: of the set, whose hidden states are checked if its identity has any.
        unit: the unit's number.
        entry: its journal entry, if it is good.
        indexed: its byte ranges in the index of hidden states, if that is good.
    """
    path = out / hidden_name(unit)
    if manifest.identity.states is None:
        return None, None
    if manifest.states is None:
        return "the record of the hidden states is lost", None
    if not path.exists():
        return "its hidden states are missing", None
    journaled = None if entry is None else entry.hidden
    if journaled is None and indexed is not None:
        journaled = HiddenPart(row_groups=tuple(indexed[0]), footer=indexed[1])
    if journaled is not None:
        good = has_ranges(path, (journaled.row_groups, journaled.footer))
        return None if good else "its hidden states were altered", journaled
    try:
        _require_consistent(path, manifest, out / shard_name(unit))
        return None, hidden_ranges(path)
    except Exception as error:  # readers raise many types on damaged bytes
        return f"its hidden states: {first_line(error)}", None


def _require_consistent(path: Path, manifest: Manifest, shard: Path) -> None:
    """Check a hidden part that no hash is left for against itself and its shard.

    Raises:
        LabelSetError, ValueError: it does not fit the set or the shard.
    """
    assert manifest.states is not None, "the caller checks"
    with checked_parquet(path) as file:
        check_hidden_footer(file.metadata, manifest, path)
        table = file.read()
    keys = read_parquet(shard, list(HIDDEN_KEYS))
    for name in HIDDEN_KEYS:
        if not table[name].equals(keys[name]):
            raise ValueError(f"column {name} is not that of the shard")
    decode_stored(table, manifest.states.layers)
    counts = keys["n_labels"].to_pylist()
    for layer in manifest.states.layers:
        if np.diff(label_offsets(table, layer)).tolist() != counts:
            raise ValueError(f"{layer} does not have one state per label")


def lost_files(out: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files in `head/` that are missing or altered."""
    for file in () if manifest.states is None else manifest.states.files:
        try:
            checked_file(out, file)
        except (LabelSetError, OSError):
            yield file.path


def rebuild_states(out: Path, old: dict[str, Any], identity: Identity) -> StatesRecord | None:
    """Return the record of a set that lost its manifest, from the old one or from hidden parts.

    Returns:
        None where the set has no hidden states, or too little is left of them.
    """
    try:
        record = StatesRecord.model_validate(old.get("states"))
        if record.identity == identity.states:
            return record
    except ValidationError:
        pass
    found = Counter(filter(None, (_record(out, path, identity) for path in hidden_parts(out))))
    return found.most_common(1)[0][0] if found else None


def _record(out: Path, part: Path, identity: Identity) -> StatesRecord | None:
    """Return the record as the footer of a hidden part states it; None if it cannot be read."""
    try:
        with checked_parquet(part) as file:
            stated = _Footer.model_validate_json((file.metadata.metadata or {})[FOOTER_KEY])
        files = [FileDigest(path=basis_name(n), sha256=sha) for n, sha in stated.bases.items()]
        head = out / HEAD_FILE
        if FINAL in stated.layers or head.is_file():
            files.insert(0, FileDigest(path=HEAD_FILE, sha256=sha256_file(head)))
        record = StatesRecord(
            layers=stated.layers,
            codec=stated.codec,
            dimensions=stated.dimensions,
            files=tuple(files),
        )
    except Exception:  # as in `check_hidden_part`
        return None
    is_own = stated.identity_digest == identity.digest
    return record if is_own and record.identity == identity.states else None


class _Footer(ExtensibleModel):
    """What a record is rebuilt from, of the JSON object in a hidden part's footer."""

    layers: tuple[str, ...]
    codec: Literal["states/1", "states/2"]
    dimensions: int
    bases: dict[str, str]
    identity_digest: str
