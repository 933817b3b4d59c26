"""Versions that a label set carries. A reader checks them before anything else."""

FORMAT_MAJOR = 1
FORMAT_MINOR = 1
"""1: the index may have lengths of rows, and the manifest the digest of the content."""
FORMAT_VERSION = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
"""Of a label set, in its manifest."""
LATEST_MINOR = 2
STATES_FORMAT_VERSION = f"{FORMAT_MAJOR}.{LATEST_MINOR}"
"""Of a label set with hidden states or other late settings: older readers refuse its fields."""
SHARD_VERSION = "1.0"
"""Of shards and views, which are the same in all sets of version 1."""

PLAIN_1 = "plain/1"
"""Codec: uint16 or int32 ids, float16 logprobs, readable by any Parquet reader (docs/format.md)."""

COMPACT_1 = "compact/1"
"""Codec: ids as gaps, logprobs in steps; smaller, and readable through `LabelSet` only."""

CODECS = {"plain": PLAIN_1, "compact": COMPACT_1}
"""Codecs by the names that commands take."""

KNOWN_CODECS = (PLAIN_1, COMPACT_1)

STATES_1 = "states/1"
"""Codec of hidden states: float16."""

STATES_2 = "states/2"
"""Codec of hidden states: whole steps along axes that are fitted to what the head reads."""

STATE_CODECS = (STATES_1, STATES_2)

__version__ = "0.1.0"
"""Version of the package `softshards`; recorded as provenance, never checked."""
