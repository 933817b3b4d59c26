"""Record batches of strangers: every offset and index in range, and no row that expands too much.

Arrow trusts the bytes of an IPC file. With one altered byte it reads outside its memory as soon as
a value is looked at, so batches are validated before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labeler.labeling.inputs.record_limits import too_large
from schemas.size_limits import EXPANSION, base_bytes

FREE_ROWS = 1 << 20
"""Rows that any file may have: a column of nulls takes no bytes."""

OBJECT = 40
"""Bytes of a small object in Python, and of the pointer to it."""
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
"""Types whose values in a dictionary have any length; others are small."""


class ArrowDamage(ValueError):
    """An Arrow or Parquet file is damaged, or expands too much."""


def checked_batches(batches: Iterable[pa.RecordBatch], stored: int) -> Iterator[pa.RecordBatch]:
    """Yield batches whose buffers were all checked.

    Args:
        batches: as they come from an IPC file or stream.
        stored: bytes of the file.

    Raises:
        ArrowDamage: a batch is not valid.
        pa.ArrowException: a batch cannot be read.
    """
    rows = 0
    for number, batch in enumerate(_allocated(batches)):
        check_rows(rows + batch.num_rows, stored)
        for index, field in enumerate(batch.schema):
            try:
                _check_type(field.type)
                _validate(batch.column(index))
            except (pa.ArrowException, ArrowDamage) as error:
                what = f"column {index} of record batch {number} (from row {rows}): {error}"
                raise ArrowDamage(what) from error
        yield batch
        rows += batch.num_rows


def _allocated(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches; one that states more bytes than there is memory is damaged.

    Raises:
        ArrowDamage: it is.
    """
    try:
        yield from batches
    except MemoryError as error:
        raise ArrowDamage("a record batch states more bytes than there is memory") from error


def check_rows(rows: int, stored: int) -> None:
    """Refuse a file that states more rows than its bytes can hold.

    Raises:
        ArrowDamage: it does.
    """
    if not 0 <= rows <= FREE_ROWS + EXPANSION * stored:
        raise ArrowDamage(f"it states {rows:,} rows in {stored:,} bytes")


def record_slices(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch | str]:
    """Yield slices of at most `rows` rows that fit into memory, or why a row does not."""
    most = 2 * base_bytes()
    for start in range(0, batch.num_rows, rows):
        some = batch.slice(start, rows)
        if _python_bytes(some) <= most:
            yield some
            continue
        for index in range(some.num_rows):
            row = some.slice(index, 1)
            yield row if _python_bytes(row) <= most else f"the row is {too_large()}"


def _check_type(kind: pa.DataType) -> None:
    """Refuse types by which a few bytes stand for many nested values."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    views = (pa.types.is_list_view, pa.types.is_large_list_view, pa.types.is_run_end_encoded)
    if any(check(kind) for check in views):
        raise ArrowDamage(f"the type {kind} is not read: write it as a list, or as plain values")
    if pa.types.is_dictionary(kind) and (kind.value_type.num_fields > 0):
        raise ArrowDamage(f"the type {kind} is not read: write it without a dictionary")
    for index in range(kind.num_fields):
        _check_type(kind.field(index).type)


def _validate(array: pa.Array) -> None:
    """Check every offset, index and view of an array; text that is not UTF-8 is left to its row."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        array.view(_as_binary(array.type)).validate(full=True)


def _as_binary(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same buffers, with bytes for text."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_field_as_binary(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_field_as_binary(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_field_as_binary(kind.field(i)) for i in range(kind.num_fields)])
    return kind


def _field_as_binary(field: pa.Field) -> pa.Field:
    return field.with_type(_as_binary(field.type))


def _python_bytes(values: pa.RecordBatch | pa.Array) -> int:
    """Return about the memory that values take in Python, where each stands for itself."""
    if isinstance(values, pa.RecordBatch):
        return sum(_python_bytes(column) for column in values.columns)
    kind, count = values.type, len(values)
    if isinstance(values, pa.ExtensionArray):
        return _python_bytes(values.storage)
    if pa.types.is_dictionary(kind):
        return OBJECT * count + _entry_bytes(values)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return OBJECT * count + _view_bytes(values)
    if pa.types.is_struct(kind):
        return OBJECT * count + sum(_python_bytes(child) for child in values.flatten())
    if pa.types.is_map(kind):
        start, stop = values.offsets[0].as_py(), values.offsets[-1].as_py()
        parts = (part.slice(start, stop - start) for part in (values.keys, values.items))
        return OBJECT * count + sum(_python_bytes(part) for part in parts)
    if kind.num_fields == 1 and hasattr(values, "flatten"):  # the kinds of lists
        return OBJECT * count + _python_bytes(values.flatten())
    return OBJECT * count + int(values.nbytes)


def _entry_bytes(array: pa.DictionaryArray) -> int:
    """Return the bytes of text behind the indices of a dictionary."""
    if not any(check(array.type.value_type) for check in TEXT):
        return 0
    return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0


def _view_bytes(array: pa.Array) -> int:
    """Return the bytes behind views, which may all be the same ones."""
    if len(array) == 0:
        return 0
    # A view has 16 bytes, of which the first four are its length.
    views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
    lengths = views[array.offset : array.offset + len(array), 0]
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return int(lengths[valid].sum(dtype=np.int64))
