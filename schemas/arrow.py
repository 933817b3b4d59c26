"""Arrow schemas of a label set's tables, and the options of its Parquet files (docs/format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.kept_positions import LABEL_WEIGHTS
from schemas.tempered_tails import TEMPERED_TAILS
from schemas.version import PLAIN_1

SPAN_KINDS = ("text", "answer", "thinking", "tool_call", "prompt")
"""Kinds of labeled spans. The trainer can weight and report each kind separately."""

ZSTD_LEVEL = 3
COLUMN_LEVELS = {"topk_ids": 1, "topk_logprobs": 5}
"""zstd levels of columns that do better at a different one: split bytes of ids are as small at 1,
split bytes of logprobs are 1 to 6 % smaller at 5. Together they take the time of level 3 for both
(`benchmarks.codec`)."""
LIST_ITEM = ".list.element"
"""Suffix that Parquet adds to the path of a list's items."""
FOOTER_KEY = b"softshards"
"""Key of the JSON object in a shard's Parquet metadata."""

SPANS = pa.list_(
    pa.struct(
        [
            pa.field("start", pa.int32(), nullable=False),
            pa.field("stop", pa.int32(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
        ]
    )
)
KEY_COLUMNS = ("id", "chunk", "sample")


def id_type(vocab_size: int) -> pa.DataType:
    """Return the storage type of token ids: uint16 where the vocabulary fits, else int32."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.int32()


def row_schema(
    vocab_size: int, codec: str = PLAIN_1, *, tempered: bool = False, weighted: bool = False
) -> pa.Schema:
    """Return the schema of a shard, one sequence per row.

    Codecs differ in how they store the top-k; `LabelSet` returns the plain columns of either.

    Args:
        vocab_size: number of the teacher's real token ids.
        codec: the codec of the shard.
        tempered: the set has tails at further temperatures (`Identity.label_temperatures`).
        weighted: its labels have weights (`Identity.has_weights`).
    """
    required = {
        "id": pa.string(),
        "chunk": pa.int32(),
        "sample": pa.int16(),
        "n_tokens": pa.int32(),
        "n_labels": pa.int32(),
        "input_ids": pa.list_(pa.int32()),
        "spans": SPANS,
        **_topk_fields(vocab_size, codec),
        "tail_logprob": pa.list_(pa.float16()),
        "token_logprob": pa.list_(pa.float16()),
    }
    nullable = {
        "parent_id": pa.string(),
        "source": pa.string(),
        "meta": pa.string(),
        "prompt": pa.string(),
        "generation": pa.string(),
        "finish_reason": pa.string(),
        "mean_nll": pa.float32(),
        "mean_entropy": pa.float32(),
        "coverage": pa.float32(),
        "student_input_ids": pa.list_(pa.int32()),
        "student_spans": SPANS,
        "entropy": pa.list_(pa.float16()),
        "log_normalizer": pa.list_(pa.float32()),
        "sample_ids": pa.list_(pa.list_(id_type(vocab_size))),
        "sample_counts": pa.list_(pa.list_(pa.uint16())),
        "sample_weights": pa.list_(pa.list_(pa.float32())),
    }
    fields = {name: pa.field(name, kind, nullable=False) for name, kind in required.items()}
    fields |= {name: pa.field(name, kind) for name, kind in nullable.items()}
    stored = [fields[name] for name in _column_order(codec)]
    stored += [TEMPERED_FIELD] * tempered + [WEIGHTS_FIELD] * weighted
    return pa.schema(stored)


TEMPERED_FIELD = pa.field(TEMPERED_TAILS, pa.list_(pa.list_(pa.float16())), nullable=False)
"""Column of a shard with tails at further temperatures, after all others."""
WEIGHTS_FIELD = pa.field(LABEL_WEIGHTS, pa.list_(pa.float16()), nullable=False)
"""Last column of a shard whose labels were sampled."""


def _topk_fields(vocab_size: int, codec: str) -> dict[str, pa.DataType]:
    if codec == PLAIN_1:
        lists = (pa.list_(pa.list_(id_type(vocab_size))), pa.list_(pa.list_(pa.float16())))
        return dict(zip(TOPK_COLUMNS, lists, strict=True))
    numbers = pa.list_(pa.int32())
    kinds = (numbers, pa.binary(), numbers, pa.binary(), numbers, numbers)
    return dict(zip(COMPACT_COLUMNS, kinds, strict=True))


def _column_order(codec: str) -> list[str]:
    if codec == PLAIN_1:
        return list(COLUMN_ORDER)
    at = COLUMN_ORDER.index(TOPK_COLUMNS[0])
    return [*COLUMN_ORDER[:at], *COMPACT_COLUMNS, *COLUMN_ORDER[at + len(TOPK_COLUMNS) :]]


TOPK_COLUMNS = ("topk_ids", "topk_logprobs")
COMPACT_COLUMNS = (
    *("topk_k", "topk_gaps", "topk_far"),
    *("topk_steps", "topk_deep", "topk_floor"),
)
"""Columns of codec `compact/1` in place of `TOPK_COLUMNS`."""


COLUMN_ORDER = (
    *("id", "chunk", "sample", "parent_id", "source", "meta"),
    *("prompt", "generation", "finish_reason"),
    *("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage"),
    *("input_ids", "spans", "student_input_ids", "student_spans"),
    *("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob"),
    *("entropy", "log_normalizer", "sample_ids", "sample_counts", "sample_weights"),
)
"""Scalars and text come first, so that a reader that filters on them never seeks past labels."""

PLAN_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("parent_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("meta", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_labels", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("spans", SPANS, nullable=False),
        pa.field("student_input_ids", pa.list_(pa.int32())),
        pa.field("student_spans", SPANS),
    ]
)
"""`plan.parquet`: one row group per work unit, each row rendered to token ids."""

ASKED = pa.field("asked_ids", pa.list_(pa.list_(pa.int32())), nullable=False)
"""Last column of a plan whose input names ids (`--ids-from`): a list of them for each label."""

REJECT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32()),
        pa.field("sample", pa.int16()),
        pa.field("source", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""`journal/*.rejects.parquet`: the records that could not be labeled, and the reasons."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("labels", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""`index/*.parquet`: one row per row group, and one with `row_group = -1` for the shard's footer.

The byte ranges of a shard tile the file, so a hash covers each of its bytes."""


LENGTHS = pa.field("lengths", pa.list_(pa.field("element", pa.int32(), nullable=False)))
"""Last column of an index page that has lengths: tokens of each row that a student sees, 0 for rows
without labels. Null in row groups that an older version wrote, and in footers."""


class ParquetOptions(TypedDict):
    """Options of `pq.ParquetWriter` and `pq.write_table`."""

    compression: str
    compression_level: dict[str, int]
    use_dictionary: list[str] | bool
    use_byte_stream_split: list[str] | bool
    write_page_checksum: bool
    write_page_index: bool
    store_schema: bool


def shard_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a Parquet writer with the options that all shards share.

    Page checksums are on. Label and id columns are BYTE_STREAM_SPLIT without a dictionary: a
    quarter smaller under zstd than the default encoding, and no slower to read.
    """
    dictionary = ["source", "finish_reason", "spans.list.element.kind", "parent_id"]
    return pq.ParquetWriter(path, schema, **parquet_options(schema, dictionary=dictionary))


def parquet_options(schema: pa.Schema, *, dictionary: list[str]) -> ParquetOptions:
    """Return options for `pq.ParquetWriter`: zstd, page checksums, split bytes for numbers.

    Args:
        schema: the file's schema.
        dictionary: paths of the columns to store with a dictionary.
    """
    leaves = {path: kind for field in schema for path, kind in _leaves(field.name, field.type)}
    split = [path for path, kind in leaves.items() if path.endswith(LIST_ITEM) and _is_number(kind)]
    levels = {path: COLUMN_LEVELS.get(path.split(".")[0], ZSTD_LEVEL) for path in leaves}
    return {
        "compression": "zstd",
        "compression_level": levels,
        "use_dictionary": [n for n in dictionary if n.split(".")[0] in schema.names] or False,
        "use_byte_stream_split": split or False,
        "write_page_checksum": True,
        "write_page_index": False,
        "store_schema": True,
    }


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yield the (path in Parquet, type) of each column that stores a field."""
    if pa.types.is_list(kind):
        yield from _leaves(path + LIST_ITEM, kind.value_type)
    elif pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{path}.{child.name}", child.type)
    else:
        yield path, kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
