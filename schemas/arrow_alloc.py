"""Arrays in Arrow's memory, for buffers as large as a row group that are allocated for each one.

Arrow's pool keeps freed pages. The C library returns them to the system, and faulting them in
again took longer than all the arithmetic of decoding.
"""

from __future__ import annotations

import math
from typing import TypeVar

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
