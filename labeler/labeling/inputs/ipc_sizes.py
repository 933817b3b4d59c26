"""Arrow IPC messages of strangers: what their compressed buffers state is checked before reading.

Arrow allocates the size that a compressed buffer states, and reads all buffers of a message at
once. PyArrow shows the bytes of messages, but not which buffers they hold, so the few fields that
matter are read here.

https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
https://github.com/apache/arrow/blob/main/format/Message.fbs
https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

from schemas.size_limits import require_expansion

DICTIONARY_BATCH, RECORD_BATCH = 2, 3
HEADER_TYPE, HEADER = 1, 2
"""Fields of a Message."""
DATA = 1
"""Field of a DictionaryBatch: its values, a RecordBatch."""
BUFFERS, COMPRESSION = 2, 3
"""Fields of a RecordBatch."""
LARGEST_FIELD = 1 << 31
"""Offsets in a message's metadata are below it."""


def check_messages(source: pa.NativeFile) -> int:
    """Check all messages of an IPC stream, and return the number of its record batches.

    Dictionaries stay in memory while batches are read, so their sizes add up.

    Args:
        source: the stream, from its first message on; a memory map is not copied.

    Raises:
        ValueError: a message is damaged, or expands too much.
        pa.ArrowException: it cannot be read.
    """
    batches = kept = kept_stored = 0
    for message in pa.ipc.MessageReader.open_stream(source):
        body = memoryview(message.body or b"").cast("B")
        try:
            kind, needed = _expanded(memoryview(message.metadata).cast("B"), body)
        except (struct.error, IndexError) as error:
            raise ValueError(f"a message is damaged: {error}") from error
        if kind == DICTIONARY_BATCH:
            kept, kept_stored = kept + needed, kept_stored + len(body)
            require_expansion("its dictionaries", kept, kept_stored)
        elif kind == RECORD_BATCH:
            what = f"record batch {batches}"
            require_expansion(what, kept + needed, kept_stored + len(body))
            batches += 1
    return batches


def _expanded(metadata: memoryview, body: memoryview) -> tuple[int, int]:
    """Return a message's type, and the bytes that its compressed buffers state."""
    message = _indirect(metadata, 0)
    at = _field(metadata, message, HEADER_TYPE)
    kind = metadata[at] if at else 0
    if kind not in (DICTIONARY_BATCH, RECORD_BATCH):
        return kind, 0
    batch = _table(metadata, message, HEADER)
    if kind == DICTIONARY_BATCH:
        batch = _table(metadata, batch, DATA)
    if not _field(metadata, batch, COMPRESSION) or not _field(metadata, batch, BUFFERS):
        return kind, 0
    return kind, sum(_stated(body, *buffer) for buffer in _buffers(metadata, batch))


def _buffers(metadata: memoryview, batch: int) -> Iterator[tuple[int, int]]:
    """Yield the offset in the body and the length of each buffer of a RecordBatch."""
    vector = _table(metadata, batch, BUFFERS)
    (count,) = struct.unpack_from("<I", metadata, vector)
    for number in range(count):
        yield struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)


def _stated(body: memoryview, offset: int, length: int) -> int:
    """Return the size of a buffer once it is decompressed; -1 says that it is not compressed."""
    if length == 0:
        return 0
    if not 0 <= offset <= offset + 8 <= offset + length <= len(body):
        raise ValueError("a buffer is outside its message")
    (size,) = struct.unpack_from("<q", body, offset)
    if size < -1:
        raise ValueError("a buffer states a negative size")
    return length if size == -1 else int(size)


def _table(data: memoryview, table: int, field: int) -> int:
    """Return the offset of the table or vector in a field."""
    at = _field(data, table, field)
    if not at:
        raise ValueError("a message lacks a part")
    return _indirect(data, at)


def _indirect(data: memoryview, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, field: int) -> int:
    """Return the offset of a table's field; 0 where the table lacks it."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if not 0 <= vtable < LARGEST_FIELD:
        raise ValueError("a message is damaged")
    (size,) = struct.unpack_from("<H", data, vtable)
    entry = 4 + 2 * field
    offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry < size else 0
    return table + int(offset) if offset else 0
