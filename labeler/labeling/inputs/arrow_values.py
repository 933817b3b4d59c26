"""Arrow's values as Python's; times that Python cannot represent become text."""

from __future__ import annotations

import pyarrow as pa

UNFIT = (ValueError, OverflowError, LookupError)
"""Errors of Arrow's conversions: years beyond 9999, unknown time zones, text that is not UTF-8."""


def to_python(batch: pa.RecordBatch) -> list[dict[str, object] | str]:
    """Return each row as a dict, or the reason why it cannot be read.

    A row that cannot be converted does not affect the others.
    """
    return _rows(_nanoseconds_to_text(batch))


def _nanoseconds_to_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert times that Python's datetime cannot represent to strings."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            batch = batch.set_column(index, field.name, _time_as_text(batch[index]))
    return batch


def _rows(batch: pa.RecordBatch) -> list[dict[str, object] | str]:
    try:
        rows: list[dict[str, object] | str] = batch.to_pylist()
        return rows
    except UNFIT:
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in _rows(batch.slice(i, 1))]
    try:
        return [{name: _value(batch[i][0]) for i, name in enumerate(batch.schema.names)}]
    except UNFIT as error:
        return [f"a column cannot be read: {error}"]


def _value(value: pa.Scalar) -> object:
    """Return a value, with the times in it that Python cannot represent as text."""
    try:
        return value.as_py()
    except UNFIT:
        if isinstance(value, pa.DictionaryScalar):
            return _value(value.value)
        if isinstance(value, pa.StructScalar):
            return {field.name: _value(value[i]) for i, field in enumerate(value.type)}
        if isinstance(value, pa.MapScalar):
            return [(_value(pair[0]), _value(pair[1])) for pair in value.values]
        if isinstance(value, pa.ListScalar):
            return [_value(each) for each in value.values]
        if pa.types.is_duration(value.type):
            return f"{value.value} {value.type.unit}"
        if not pa.types.is_temporal(value.type):
            raise
    return _time_as_text(pa.array([value], value.type))[0].as_py()


def _time_as_text(times: pa.Array) -> pa.Array:
    try:
        return times.cast(pa.string())
    except pa.ArrowInvalid:  # a time zone that this machine does not know
        return times.cast(pa.timestamp(times.type.unit, "UTC")).cast(pa.string())
