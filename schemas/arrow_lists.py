"""Lists in Arrow columns: one array per column, and its offsets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without the copy that `combine_chunks` makes of one chunk."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else column.type.empty()


def list_offsets(array: pa.ListArray) -> NDArray[np.int64]:
    """Return offsets into `array.flatten()`, which (unlike `.values`) honors slices."""
    offsets = as_numpy(array.offsets)
    return np.subtract(offsets, offsets[0], dtype=np.int64) if len(offsets) else np.zeros(1, int)
