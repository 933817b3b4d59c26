"""Weights of labels that were sampled (`labeler label --keep-positions`), in mixtures. No torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from schemas.arrow import WEIGHTS_FIELD
from schemas.arrow_alloc import as_arrow
from schemas.arrow_lists import list_offsets, one_array


def with_equal_weights(table: pa.Table) -> pa.Table:
    """Return rows of a set that stores all labels, with a weight of 1 for each."""
    offsets = list_offsets(one_array(table["tail_logprob"]))
    ones = as_arrow(np.ones(int(offsets[-1]), np.float16))
    lists = pa.ListArray.from_arrays(as_arrow(offsets.astype(np.int32)), ones)
    return table.append_column(WEIGHTS_FIELD, lists)
