"""Names of the files of a label set, relative to its folder (docs/format.md)."""

from __future__ import annotations

import re

TOKENIZER = "tokenizer"
INDEX = "index"
JOURNAL = "journal"
SHARDS = "shards"
BATCH = 256
"""Units whose journal entries are merged into one file."""


def shard_name(unit: int) -> str:
    """Return the path of a unit's shard."""
    return f"{SHARDS}/part-{unit:06d}.parquet"


def is_own_shard(name: str, rank: int, world_size: int) -> bool:
    """Check whether a file of this name is the shard of a unit that falls to a rank."""
    found = re.fullmatch(SHARDS + r"/part-(\d{6,15})\.parquet", name)
    return found is not None and int(found[1]) % world_size == rank


def entry_name(unit: int) -> str:
    """Return the path of a unit's journal entry."""
    return f"{JOURNAL}/unit-{unit:06d}.json"


def batch_name(unit: int) -> str:
    """Return the path of the batch that a unit's entry and rejects may be merged into."""
    return f"{JOURNAL}/units-{unit // BATCH * BATCH:06d}.parquet"


def rejects_name(unit: int) -> str:
    """Return the path of a unit's rejects."""
    return f"{JOURNAL}/unit-{unit:06d}.rejects.parquet"


def is_plan(name: str) -> bool:
    """Check whether a file of this name is a plan."""
    return re.fullmatch(r"plan(-\d{4,})?\.parquet", name) is not None


def is_plan_rejects(name: str) -> bool:
    """Check whether a file of this name holds the records that a plan rejected."""
    return re.fullmatch(JOURNAL + r"/plan(-\d{4,})?\.rejects\.parquet", name) is not None


def is_index_page(name: str) -> bool:
    """Check whether a file of this name is a page of the index."""
    return re.fullmatch(INDEX + r"/page-\d{6,}\.parquet", name) is not None


def is_tokenizer_file(name: str) -> bool:
    """Check whether a file of this name is directly in the tokenizer's folder."""
    return re.fullmatch(TOKENIZER + r"/[^/]+", name) is not None
