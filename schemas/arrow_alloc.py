"""Arrays of Arrow's memory, for what is as large as a row group and made anew for each.

Arrow's pool keeps pages that were freed. The C library gives them back to the system, and faulting
them in again took longer than all arithmetic of decoding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array with arbitrary content, as `numpy.empty`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(pa.allocate_buffer(size), dtype).reshape(shape)


def converted(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """A copy of values [...] as another dtype, as `values.astype(dtype)`."""
    copy = empty(values.shape, dtype)
    copy[...] = values
    return copy
