"""Names of the files of a label set, relative to its folder (docs/format.md)."""

from __future__ import annotations

import re

FAR_SUFFIX = "_far"
"""What a layer's column of far codes adds to its name."""
TOKENIZER = "tokenizer"
INDEX = "index"
JOURNAL = "journal"
SHARDS = "shards"
HIDDEN = "hidden"
HEAD = "head"
HEAD_FILE = f"{HEAD}/head.safetensors"
"""The teacher's output projection, of a set with hidden states."""
FINAL = "final"
"""Layer of hidden states: the input of the head, after the final norm."""
LAYER = re.compile(r"final|layer_(0|[1-9][0-9]{0,3})")
"""Names of layers, which are those of their columns; `layer_K` is the output of decoder layer K."""
BATCH = 256
"""Units whose journal entries are merged into one file."""


def shard_name(unit: int) -> str:
    """Return the path of a unit's shard."""
    return f"{SHARDS}/part-{unit:06d}.parquet"


def hidden_name(unit: int) -> str:
    """Return the path of a unit's hidden states."""
    return f"{HIDDEN}/part-{unit:06d}.parquet"


def hidden_beside(shard: str) -> str:
    """Return the path of the hidden states that belong to a shard."""
    return HIDDEN + shard.removeprefix(SHARDS)


def basis_name(layer: str) -> str:
    """Return the path of the basis of a layer's hidden states."""
    return f"{HEAD}/basis_{layer}.safetensors"


def is_state_column(name: str) -> bool:
    """Check whether a column of this name holds hidden states, or their far codes."""
    return LAYER.fullmatch(name.removesuffix(FAR_SUFFIX)) is not None


def is_own_shard(name: str, rank: int, world_size: int) -> bool:
    """Check whether a file has the name of a shard, or of hidden states, that falls to a rank."""
    found = re.fullmatch(f"({SHARDS}|{HIDDEN})" + r"/part-(\d{6,15})\.parquet", name)
    return found is not None and int(found[2]) % world_size == rank


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


def is_hidden_page(name: str) -> bool:
    """Check whether a file of this name is a page of the index of hidden states."""
    return re.fullmatch(INDEX + r"/hidden-\d{6,}\.parquet", name) is not None


def is_tokenizer_file(name: str) -> bool:
    """Check whether a file of this name is directly in the tokenizer's folder."""
    return re.fullmatch(TOKENIZER + r"/[^/]+", name) is not None
