"""The files of a complete label set: the ones it declares, and what else is in its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.atomic import TMP_PREFIX
from schemas.file_names import (
    BATCH,
    HEAD,
    HIDDEN,
    INDEX,
    JOURNAL,
    SHARDS,
    TOKENIZER,
    batch_name,
    entry_name,
    hidden_beside,
    is_plan,
    rejects_name,
)
from schemas.journal_batches import batch_path
from schemas.labelset import LabelSet
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST
from schemas.object_store import list_files

CARD = "README.md"
"""The dataset card of a pulled set; a push writes it anew."""
FOLDERS = (INDEX, JOURNAL, SHARDS, TOKENIZER, HIDDEN, HEAD)
"""Folders in which every file is part of the set."""
QUARANTINE = "quarantine"
"""Folder of the files that `labeler repair` set aside."""


def declared_files(labels: LabelSet) -> list[str]:
    """Return the files that a complete set declares, relative to its folder, sorted.

    Each is covered by a hash: in the manifest, in the index, or, for the journal's entries and the
    ledger, by what the journal must add up to.
    """
    manifest = labels.manifest
    named = [*manifest.tokenizer_files, *manifest.index_pages, *(manifest.plan_rejects or ())]
    units = range(manifest.planned_units)
    files = {MANIFEST, LEDGER, *labels.shards, *(file.path for file in named)}
    if manifest.states is not None:
        own = (*manifest.states.files, *(manifest.hidden_pages or ()))
        files |= {*map(hidden_beside, labels.shards), *(file.path for file in own)}
    if manifest.plan is not None:
        files.add(manifest.plan.path)
        if manifest.plan_rejects is None:  # an older version made the set, and named no hash
            files |= {
                f"{JOURNAL}/{path.name}"
                for path in (labels.records_dir / JOURNAL).glob("plan*.rejects.parquet")
            }
    merged = {
        batch_name(first)
        for first in range(0, manifest.planned_units - BATCH + 1, BATCH)
        if batch_path(labels.records_dir, first).is_file()
    }
    alone = (unit for unit in units if batch_name(unit) not in merged)
    return sorted(files.union(merged, *({entry_name(u), rejects_name(u)} for u in alone)))


def is_set_file(name: str) -> bool:
    """Check whether a file of this name, relative to a set's folder, can be part of a set."""
    folder, _, rest = name.partition("/")
    own = folder in FOLDERS if rest else name in (MANIFEST, LEDGER) or is_plan(name)
    return own and not is_leftover(name)


def is_leftover(name: str) -> bool:
    """Recognize the temporary files of killed writers."""
    return any(part.startswith(TMP_PREFIX) for part in name.split("/"))


def is_ignored(name: str) -> bool:
    """Recognize files beside the set: locks, leftovers, quarantine, a pulled card, its cache."""
    return (
        name == CARD or name.startswith((".lock", ".cache/", f"{QUARANTINE}/")) or is_leftover(name)
    )


def extra_files(labels: LabelSet) -> Iterator[str]:
    """Yield what is in a set's folder and not declared, relative to the folder; and any link."""
    declared = set(declared_files(labels))
    for name in all_files(labels.path) if labels.remote is None else list_files(labels.remote):
        if (name not in declared and not is_ignored(name)) or (labels.path / name).is_symlink():
            yield name


def all_files(directory: Path) -> Iterator[str]:
    """Yield all files and links in a folder, relative to it, without following links."""
    for folder, folders, files in os.walk(directory):
        folders.sort()
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*files, *linked]):
            yield Path(folder, name).relative_to(directory).as_posix()
