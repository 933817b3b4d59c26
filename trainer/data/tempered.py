"""The teacher's tail at a temperature besides 1, of label sets that hold it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from schemas import LabelSet, LabelSetError
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.arrow_lists import list_offsets, one_array
from schemas.tempered_tails import TEMPERED_TAILS
from trainer.data.window import row_names


def require_temperature(labels: LabelSet, temperature: float) -> int:
    """Return the place of a temperature among those of a set.

    Raises:
        LabelSetError: the set has no tails at this temperature.
    """
    known = labels.manifest.identity.label_temperatures or ()
    if temperature in known:
        return known.index(temperature)
    listed = ", ".join(f"{value:g}" for value in (1.0, *known))
    raise LabelSetError(
        f"the labels hold the mass outside the top k at T = {listed}, and --temperature is "
        f"{temperature:g}: its mass there depends on how it is spread over ids that are not stored",
        path=labels.place,
        hint=f"label with `labeler label --label-temperatures {temperature:g}`, or use a loss that "
        "needs no such tail: exact_kl on a set with hidden states, or renormalized_kl",
    )


def one_temperature(table: pa.Table, place: int) -> pa.Table:
    """Keep the tails at one temperature, so that sets with different ones can be mixed.

    Raises:
        LabelSetError: a position has fewer tails.
    """
    column = one_array(table[TEMPERED_TAILS])
    tails = column.flatten()
    lengths = np.diff(list_offsets(tails))
    if len(lengths) and not lengths.min() > place:
        at = int(np.argmin(lengths > place))
        row = int(np.searchsorted(list_offsets(column), at, side="right")) - 1
        raise LabelSetError(
            "a position has no tail at this temperature",
            row=row_names(table)[row],
            hint="run `labeler verify` on the label set",
        )
    starts = list_offsets(tails)[:-1]
    kept = as_arrow(as_numpy(tails.flatten())[starts + place])
    inner = pa.ListArray.from_arrays(as_arrow(np.arange(len(kept) + 1, dtype=np.int32)), kept)
    outer = as_arrow(list_offsets(column).astype(np.int32))
    at = table.column_names.index(TEMPERED_TAILS)
    return table.set_column(at, TEMPERED_TAILS, pa.ListArray.from_arrays(outer, inner))


def at_temperature(logp: Tensor, log_tail: Tensor, temperature: float) -> Tensor:
    """Return the logprobs of the ids at T: in proportion to exp(logp / T), 1 less the tail in sum.

    Args:
        logp: [n, k], at T = 1 up to a constant per row; -inf for padding.
        log_tail: [n], at T.
    """
    scaled = logp / temperature
    rest = torch.log(-torch.expm1(log_tail))
    return scaled - scaled.logsumexp(1, keepdim=True) + rest[:, None]
