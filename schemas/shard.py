"""One shard file: its writer, its footer, and its hashed byte ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas import compact
from schemas.arrow import COMPACT_COLUMNS, FOOTER_KEY, row_schema, shard_writer
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError
from schemas.fingerprint import canonical_json, sha256_bytes
from schemas.journal import ByteRange
from schemas.json_values import parse_object
from schemas.manifest import Identity, Manifest
from schemas.row_lengths import LENGTH_COLUMNS, count_lengths, lengths_to_text
from schemas.size_limits import LARGEST_VOCABULARY
from schemas.version import COMPACT_1, PLAIN_1, SHARD_VERSION

ORDER = "topk_order"
"""Key of a compact shard's order of ids in the footer's JSON object."""


def identity_schema(identity: Identity, codec: str = PLAIN_1) -> pa.Schema:
    """Return the schema of the shards of a set."""
    return row_schema(
        identity.vocab_size,
        codec,
        tempered=bool(identity.label_temperatures),
        weighted=identity.has_weights,
    )


def footer_metadata(
    identity: Identity,
    *,
    unit: int,
    tail_source: str,
    entropy_source: str,
    order: NDArray[np.int32] | None = None,
) -> dict[bytes, bytes]:
    """Return the key-value metadata that makes a shard safe to use alone.

    It holds nothing that differs between two runs of the same work (no time, host or version). So
    the shards of a resumed run are byte-identical to the shards of an uninterrupted one.

    Args:
        identity: the label set's identity.
        unit: the shard's number in the set.
        tail_source: how column `tail_logprob` was computed.
        entropy_source: how column `entropy` was computed.
        order: `compact.frequency_order` of the ids, for codec `compact/1`.
    """
    content = {
        "format_version": SHARD_VERSION,
        "codec": PLAIN_1 if order is None else COMPACT_1,
        "k": identity.k,
        "vocab_size": identity.vocab_size,
        "identity": identity.model_dump(mode="json"),
        "identity_digest": identity.digest,
        "tail_source": tail_source,
        "entropy_source": entropy_source,
        "unit": unit,
    }
    if order is not None:
        content[ORDER] = compact.order_to_text(order)
    return {FOOTER_KEY: canonical_json(content)}


def write_shard(
    path: Path,
    tables: Iterable[pa.Table],
    *,
    identity: Identity,
    unit: int,
    tail_source: str,
    entropy_source: str,
    order: NDArray[np.int32] | None = None,
) -> tuple[tuple[ByteRange, ...], ByteRange]:
    """Write a shard atomically, one row group per table.

    Args:
        path: path of the shard.
        tables: rows with the plain columns, one table per row group.
        identity: the label set's identity.
        unit: the shard's number in the set.
        tail_source: how column `tail_logprob` was computed, for the footer.
        entropy_source: how column `entropy` was computed, for the footer.
        order: `compact.frequency_order` of all ids in `tables`, to write codec `compact/1`.

    Returns:
        The byte ranges of the row groups, in order, and of the footer.
    """
    codec = PLAIN_1 if order is None else COMPACT_1
    metadata = footer_metadata(
        identity, unit=unit, tail_source=tail_source, entropy_source=entropy_source, order=order
    )
    schema = identity_schema(identity, codec).with_metadata(metadata)
    places = stored_order(metadata)
    stored = (t if places is None else compact.pack(t, places) for t in tables)
    with atomic_path(path) as tmp:
        write_row_groups(shard_writer(tmp, schema), stored, metadata)
        return byte_ranges(tmp)


def write_row_groups(
    writer: pq.ParquetWriter, tables: Iterable[pa.Table], metadata: dict[bytes, bytes]
) -> None:
    """Write a whole file, one row group per table; `metadata` is that of its schema."""
    with writer:
        for table in tables:
            stored = table.replace_schema_metadata(metadata)
            writer.write_table(stored, row_group_size=max(1, stored.num_rows))


def byte_ranges(path: Path) -> tuple[tuple[ByteRange, ...], ByteRange]:
    """Hash a finished shard; return the ranges of its row groups, in order, and of its footer.

    The ranges tile the file. A row group's range ends with its last column chunk and starts at the
    end of the row group before it. The first one starts at byte 0, which covers the leading magic;
    the footer's range is the rest.
    """
    groups, footer, table = hashed_ranges(path, LENGTH_COLUMNS)
    lengths, row, counted = count_lengths(table), 0, []
    for group in groups:
        rows = table.slice(row, group.rows)
        counts = {
            "labels": sum(rows["n_labels"].to_pylist()),
            "tokens": sum(rows["n_tokens"].to_pylist()),
            "lengths": lengths_to_text(lengths[row : row + group.rows]),
        }
        counted.append(group.model_copy(update=counts))
        row += group.rows
    return tuple(counted), footer


def hashed_ranges(
    path: Path, columns: Sequence[str]
) -> tuple[tuple[ByteRange, ...], ByteRange, pa.Table]:
    """Return the byte ranges of a file's row groups and footer, with rows, and some columns."""
    with pa.memory_map(str(path)) as source:
        data = memoryview(source.read_buffer())
        file = pq.ParquetFile(source)
        metadata, table = file.metadata, file.read(list(columns))
        start, groups = 0, []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            chunks = [group.column(i) for i in range(metadata.num_columns)]
            stop = max(_chunk_start(c) + c.total_compressed_size for c in chunks)
            digest = sha256_bytes(data[start:stop])
            groups.append(ByteRange(start=start, stop=stop, sha256=digest, rows=group.num_rows))
            start = stop
        footer = ByteRange(start=start, stop=len(data), sha256=sha256_bytes(data[start:]))
    return tuple(groups), footer, table


def _chunk_start(chunk: pq.ColumnChunkMetaData) -> int:
    data: int = chunk.data_page_offset
    dictionary: int | None = chunk.dictionary_page_offset
    return data if dictionary is None else min(dictionary, data)


def stored_order(metadata: dict[bytes, bytes] | None) -> NDArray[np.int32] | None:
    """Return the order of ids of a shard in codec `compact/1`; None for `plain/1`.

    Args:
        metadata: the shard's key-value metadata, from its footer or a table read from it.

    Returns:
        int32 [vocab_size]: the id at each place.

    Raises:
        ValueError: this is not a shard's metadata, or the order is damaged.
    """
    raw = (metadata or {}).get(FOOTER_KEY)
    if raw is None:
        raise ValueError("not a softshards shard: its metadata has no identity")
    content = parse_object(raw)
    if ORDER not in content:
        return None
    text, vocab_size = content[ORDER], content.get("vocab_size")
    if not isinstance(text, str) or not isinstance(vocab_size, int):
        raise ValueError("the footer's order of ids is not one")
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(f"the footer states {vocab_size} ids")
    return compact.order_from_text(text, vocab_size)


def to_plain(table: pa.Table) -> pa.Table:
    """Convert rows of one shard, read by any means, to the plain columns of docs/format.md.

    Args:
        table: rows of one shard in either codec, with its schema metadata. Do not concatenate
            tables of several compact shards first: each has its own order of ids.

    Raises:
        ValueError: a compact column or the metadata is missing.
    """
    if not any(name in table.column_names for name in COMPACT_COLUMNS):
        return table
    order = stored_order(table.schema.metadata)
    if order is None:
        raise ValueError("compact columns under the footer of a plain shard")
    return compact.unpack(table, order)


def check_footer(metadata: pq.FileMetaData, manifest: Manifest, path: Path | str) -> None:
    """Refuse a shard whose footer names a different teacher, tokenizer or setting, or columns.

    Raises:
        LabelSetError: the footer is not a shard's, or its identity is not the manifest's.
        ValueError: its facts or its columns are not those of a shard.
    """
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    if raw is None:
        raise LabelSetError("not a softshards shard: its footer has no identity", path=path)
    found = parse_object(raw)
    for name, expected in (
        ("format_version", SHARD_VERSION),
        ("codec", manifest.codec),
        ("identity_digest", manifest.identity_digest),
        ("vocab_size", manifest.identity.vocab_size),
    ):
        if found.get(name) != expected:
            raise LabelSetError(
                f"the shard belongs to a different label set: {name} is {found.get(name)!r}, "
                f"expected {expected!r}",
                path=path,
                hint="put the shard back where it came from and run `labeler label` again",
            )
    for name in ("tail_source", "entropy_source"):
        if not isinstance(found.get(name), str):
            raise ValueError(f"the footer has no {name}")
    schema = identity_schema(manifest.identity, manifest.codec)
    if not metadata.schema.to_arrow_schema().remove_metadata().equals(schema):
        raise ValueError("the schema is not that of format version 1")
