"""The golden set with what format 1.2 added: tails at temperatures, weights, asked ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas import decode
from schemas.arrow import TEMPERED_FIELD, WEIGHTS_FIELD
from schemas.codec import PAD_ID
from tests.hostile.sealed import reidentify, rewrite_rows
from tests.schemas.sets import GOLDEN

VOCAB, K, ASKED = 300, 6, 2
TEMPERATURES = (2.0, 0.5)
RULE = "sample 0.5"


def with_late_columns(table: pa.Table) -> pa.Table:
    """Add tails at `TEMPERATURES`, of mass that is spread evenly outside the ids; and weights."""
    labels = decode(table).labels
    real = labels.topk_ids != PAD_ID
    logs = np.where(real, labels.topk_logprobs, -np.inf).astype(np.float64)
    others = np.log(np.maximum(VOCAB - real.sum(axis=1), 1))
    tails = []
    for inverse in (1 / t for t in TEMPERATURES):
        kept = np.logaddexp.reduce(logs * inverse, axis=1, initial=-np.inf)
        rest = labels.tail_logprob * inverse + (1 - inverse) * others
        tails.append(rest - np.logaddexp(rest, kept))
    flat = np.stack(tails, axis=1).astype(np.float16)
    offsets = table["tail_logprob"].combine_chunks().offsets
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(len(flat) + 1, dtype=np.int32) * len(TEMPERATURES)), flat.ravel()
    )
    weights = pa.ListArray.from_arrays(offsets, np.ones(len(flat), np.float16))
    tempered = pa.ListArray.from_arrays(offsets, inner)
    return table.append_column(TEMPERED_FIELD, tempered).append_column(WEIGHTS_FIELD, weights)


def write_late_set(path: Path) -> Path:
    """Write the set into a new folder."""
    shutil.copytree(GOLDEN, path)
    for number in range(len(list((path / "shards").iterdir()))):
        rewrite_rows(path, with_late_columns, shard=number)
    late = {"label_temperatures": list(TEMPERATURES), "keep_positions": RULE}
    reidentify(path, **late, k=K - ASKED, ids_from=f"ids:{ASKED}")
    return path
