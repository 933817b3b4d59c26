"""Arrays between NumPy and Arrow, and arrays in Arrow's memory.

Buffers as large as a row group are allocated for each one. Arrow's pool keeps freed pages. The C
library returns them to the system, and faulting them in again took longer than all the arithmetic
of decoding. PyArrow's own conversions (`to_numpy`, `pa.array`) import pandas: 0.25 s per process.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def empty(shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return an uninitialized array, as `numpy.empty` does."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(pa.allocate_buffer(size), dtype).reshape(shape)


def converted(values: NDArray[np.generic], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return a copy of values [...] in another dtype, as `values.astype(dtype)` does."""
    copy = empty(values.shape, dtype)
    copy[...] = values
    return copy


def as_numpy(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return an array of numbers without nulls, as `array.to_numpy` does; a view of one chunk.

    Raises:
        ValueError: it has nulls.
    """
    if array.null_count:
        raise ValueError("an array has nulls")
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    values: NDArray[Any] = np.from_dlpack(array)
    return values


def as_arrow(values: NDArray[np.generic]) -> pa.Array:
    """Return numbers [n] as an array without nulls, as `pa.array` does; it shares their memory."""
    kind = pa.from_numpy_dtype(values.dtype)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, data])
