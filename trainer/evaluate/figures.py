"""The figures of a model, from sums over labels: of a whole set, or of its replicates at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.calibration_error import expected_calibration_error, top1_accuracy
from trainer.evaluate.results import Metrics, drafted_tokens

Array = NDArray[np.float64]

COLUMNS = (
    *("labels", "ce", "kl", "agreement", "overlap", "acceptance", "acceptance_upper"),
    *("teacher_ce", "reverse_kl", "exact_kl", "bytes", "text_ce"),
)
"""What is added up over labels, in order. `text_ce` is `ce` where the token has bytes; `bytes` and
`exact_kl` are NaN where they are not known."""


def figures(sums: Array, bins: Array) -> dict[str, Array]:
    """Return every figure with an interval, by name; NaN where it is not known.

    Args:
        sums: [..., COLUMNS].
        bins: [..., 3, BINS].

    Returns:
        Arrays of the leading shape.
    """
    of = dict(zip(COLUMNS, np.moveaxis(sums, -1, 0)))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        means = {name: of[name] / of["labels"] for name in COLUMNS[1:10]}
        bits = of["text_ce"] / (of["bytes"] * math.log(2))
        bits = np.where(of["bytes"] > 0, bits, np.nan)
    acceptance = means["acceptance"].clip(max=1.0)
    return means | {
        "ppl": perplexity(means["ce"]),
        "bits_per_byte": bits,
        "acceptance": acceptance,
        "acceptance_upper": means["acceptance_upper"].clip(max=1.0),
        "drafted": np.asarray(drafted_tokens(acceptance)),
        "accuracy": top1_accuracy(bins),
        "ece": expected_calibration_error(bins),
        "teacher_ppl": perplexity(means["teacher_ce"]),
    }


def metrics(sums: Array, bins: Array) -> Metrics:
    """Return the metrics of one part of the set: `figures` as a record."""
    found = {name: float(value) for name, value in figures(sums, bins).items()}
    size = float(sums[COLUMNS.index("bytes")])
    bits, exact = found["bits_per_byte"], found["exact_kl"]
    return Metrics(
        labels=round(sums[0]),
        bytes=None if math.isnan(size) else int(size),
        bits_per_byte=None if math.isnan(bits) else bits,
        ce=found["ce"],
        ppl=found["ppl"],
        kl=found["kl"],
        reverse_kl=found["reverse_kl"],
        exact_kl=None if math.isnan(exact) else exact,
        agreement=found["agreement"],
        overlap=found["overlap"],
        accuracy=found["accuracy"],
        ece=found["ece"],
        teacher_ce=found["teacher_ce"],
        teacher_ppl=found["teacher_ppl"],
        acceptance=found["acceptance"],
        acceptance_upper=found["acceptance_upper"],
    )


def perplexity(ce: Array) -> Array:
    """Return e to the cross-entropy, without overflow."""
    return np.asarray(np.exp(np.minimum(ce, 700.0)))
