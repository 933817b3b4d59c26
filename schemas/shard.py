"""One shard file: what its footer says, and the byte ranges that are hashed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import FOOTER_KEY
from schemas.errors import LabelSetError
from schemas.fingerprint import canonical_json, sha256_bytes
from schemas.journal import ByteRange
from schemas.manifest import Identity, Manifest
from schemas.version import FORMAT_VERSION, PLAIN_1


def footer_metadata(
    identity: Identity, *, unit: int, tail_source: str, entropy_source: str
) -> dict[bytes, bytes]:
    """Key-value metadata that makes a shard safe to use alone.

    It holds nothing that differs between two runs of the same work (no time, host or version), so
    that a resumed run's shards are byte-identical to an uninterrupted one's.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "codec": PLAIN_1,
        "k": identity.k,
        "vocab_size": identity.vocab_size,
        "identity": identity.model_dump(mode="json"),
        "identity_digest": identity.digest,
        "tail_source": tail_source,
        "entropy_source": entropy_source,
        "unit": unit,
    }
    return {FOOTER_KEY: canonical_json(content)}


def byte_ranges(path: Path) -> tuple[tuple[ByteRange, ...], ByteRange]:
    """Hash a finished shard: (row groups in order, footer). The ranges tile the file.

    A row group's range runs from the end of the one before it (the first from byte 0, so that the
    leading magic is covered) to the end of its last column chunk; the footer has the rest.
    """
    with pa.memory_map(str(path)) as source:
        data = memoryview(source.read_buffer())
        metadata = pq.ParquetFile(source).metadata
        table = pq.read_table(source, columns=["n_labels", "n_tokens"])
        start, row, groups = 0, 0, []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            chunks = [group.column(i) for i in range(metadata.num_columns)]
            stop = max(_chunk_start(c) + c.total_compressed_size for c in chunks)
            rows = table.slice(row, group.num_rows)
            groups.append(
                ByteRange(
                    start=start,
                    stop=stop,
                    sha256=sha256_bytes(data[start:stop]),
                    rows=group.num_rows,
                    labels=sum(rows["n_labels"].to_pylist()),
                    tokens=sum(rows["n_tokens"].to_pylist()),
                )
            )
            start, row = stop, row + group.num_rows
        footer = ByteRange(start=start, stop=len(data), sha256=sha256_bytes(data[start:]))
    return tuple(groups), footer


def _chunk_start(chunk: pq.ColumnChunkMetaData) -> int:
    dictionary = chunk.dictionary_page_offset
    return chunk.data_page_offset if dictionary is None else min(dictionary, chunk.data_page_offset)


def check_footer(metadata: pq.FileMetaData, manifest: Manifest, path: Path) -> None:
    """Refuse a shard whose own footer names another teacher, tokenizer or setting.

    Raises:
        LabelSetError: the footer is not ours, or its identity is not the manifest's.
    """
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    if raw is None:
        raise LabelSetError("not a softshards shard: its footer has no identity", path=path)
    found = json.loads(raw)
    for name, expected in (
        ("format_version", manifest.format_version),
        ("codec", manifest.codec),
        ("identity_digest", manifest.identity_digest),
    ):
        if found[name] != expected:
            raise LabelSetError(
                f"the shard belongs to another label set: {name} is {found[name]!r}, "
                f"the manifest has {expected!r}",
                path=path,
                mend="put the shard back where it came from and run `labeler label` again",
            )
