"""95 % intervals contain the truth in 92 to 98 % of 500 trials, for every figure and difference."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluate.bootstrap import REPLICATES
from trainer.evaluate.calibration_error import BINS
from trainer.evaluate.figures import COLUMNS
from trainer.evaluate.model_differences import differences
from trainer.evaluate.results import Group, Measured
from trainer.evaluate.tally import Part

TRIALS = 500
SHORTEST, LONGEST = 5, 200
CONFIDENCE = (np.arange(BINS) + 0.5) / BINS
LENGTHS = np.arange(SHORTEST, LONGEST)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Expectations of a synthetic model. `gap`: accuracy below confidence, where there is room."""

    ce: float
    kl: float
    agreement: float
    overlap: float
    acceptance: float
    gap: float

    @property
    def gaps(self) -> NDArray[np.float64]:
        return np.minimum(self.gap, CONFIDENCE / 2)

    def truth(self) -> dict[str, float]:
        """Return the figures of infinitely many documents; longer ones have a higher ce."""
        squares = float((LENGTHS**2.0).mean() / LENGTHS.mean())
        ce = self.ce + squares / 1000
        return {
            "ce": ce,
            "ppl": math.exp(ce),
            "bits_per_byte": ce / 4.5 / math.log(2),
            "kl": self.kl,
            "reverse_kl": 2 * self.kl,
            "exact_kl": 1.5 * self.kl,
            "agreement": self.agreement,
            "overlap": self.overlap,
            "acceptance": self.acceptance,
            "drafted": sum(self.acceptance**i for i in range(5)),
            "accuracy": float((CONFIDENCE - self.gaps).mean()),
            "ece": float(self.gaps.mean()),
        }


FIRST = Model(ce=2.0, kl=0.5, agreement=0.6, overlap=0.5, acceptance=0.6, gap=0.15)
SECOND = Model(ce=2.1, kl=0.6, agreement=0.58, overlap=0.5, acceptance=0.55, gap=0.06)
CALIBRATED = Model(ce=2.0, kl=0.5, agreement=0.6, overlap=0.5, acceptance=0.6, gap=0.0)


def sample(
    model: Model, lengths: NDArray[np.int64], hardness: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of each document: [documents, COLUMNS] and [documents, 3, BINS]."""
    random = np.random.default_rng(seed)
    n = len(lengths)

    def total(mean: float, spread: float, shared: float) -> NDArray[np.float64]:
        """Return sums with a mean per label, that vary with the document and its hardness."""
        each = mean + shared * hardness + spread * random.normal(size=n)
        return np.asarray(lengths * each + np.sqrt(lengths) * spread * random.normal(size=n))

    ce = total(model.ce, 0.2, 0.4) + lengths**2 / 1000
    sizes = np.round(lengths * (4.5 + 0.3 * random.normal(size=n)))
    counts = np.stack([random.multinomial(length, np.full(BINS, 1 / BINS)) for length in lengths])
    # Documents differ in how right the model is: overall it is off by `gaps`.
    mean = CONFIDENCE - model.gaps
    accuracy = mean + 0.15 * hardness[:, None] * mean * (1 - mean)
    correct = random.binomial(counts, accuracy.clip(0, 1))
    columns = {
        "labels": lengths.astype(float),
        "ce": ce,
        "text_ce": ce * sizes / (4.5 * lengths),
        "bytes": sizes,
        "kl": total(model.kl, 0.05, 0.1),
        "agreement": total(model.agreement, 0.05, -0.1),
        "overlap": total(model.overlap, 0.05, -0.05),
        "acceptance": total(model.acceptance, 0.05, -0.05),
        "acceptance_upper": total(model.acceptance, 0.05, -0.05),
        "teacher_ce": ce,
        "reverse_kl": total(2 * model.kl, 0.05, 0.1),
        "exact_kl": total(1.5 * model.kl, 0.05, 0.1),
    }
    bins = np.stack([counts, counts * CONFIDENCE, correct], 1).astype(float)
    return np.stack([columns[name] for name in COLUMNS], 1), bins


def measured(
    sums: NDArray[np.float64], bins: NDArray[np.float64], counts: NDArray[np.float64]
) -> Group:
    flat = bins.reshape(len(bins), -1)
    part = Part(counts.T @ sums, (counts.T @ flat).reshape(-1, 3, BINS), len(sums))
    return Group(
        value=None,
        documents=part.documents,
        metrics=part.metrics,
        intervals=part.intervals(),
        replicates=part.replicates(),
    )


@pytest.fixture(scope="module")
def covered() -> dict[str, float]:
    """Return the share of trials in which each interval contains the truth."""
    hits: dict[str, int] = defaultdict(int)
    documents = 100
    for trial in range(TRIALS):
        random = np.random.default_rng([7, trial])
        lengths = random.choice(LENGTHS, documents)
        hardness = random.normal(size=documents)
        counts = np.ones((documents, 1 + REPLICATES))
        counts[:, 1:] = random.poisson(1.0, (documents, REPLICATES))
        models = (FIRST, SECOND, CALIBRATED)
        found = [
            measured(*sample(model, lengths, hardness, 10 * trial + at), counts)
            for at, model in enumerate(models)
        ]
        for name, model, one in zip(("first", "second", "calibrated"), models, found):
            for figure, truth in model.truth().items():
                low, high = one.intervals[figure]
                hits[f"{name} {figure}"] += low <= truth <= high
        first, second = FIRST.truth(), SECOND.truth()
        pair: tuple[Measured, Measured] = (found[0], found[1])
        for figure, difference in differences(*pair).items():
            low, high = difference.interval
            hits[f"difference {figure}"] += low <= first[figure] - second[figure] <= high
    return {name: count / TRIALS for name, count in hits.items()}


FIGURES = tuple(FIRST.truth())
COMPARED = tuple(f for f in FIGURES if f not in ("drafted", "reverse_kl", "exact_kl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "interval",
    [
        *(f"first {figure}" for figure in FIGURES),
        *(f"second {figure}" for figure in FIGURES if figure != "ece"),
        *(f"difference {figure}" for figure in COMPARED),
    ],
)
def test_intervals_cover_the_truth(covered: dict[str, float], interval: str) -> None:
    assert 0.92 <= covered[interval] <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["second ece", "calibrated ece"])
def test_intervals_of_a_small_calibration_error_are_wide_enough(
    covered: dict[str, float], interval: str
) -> None:
    """Near 0 the error of a sample is mostly noise; the interval is wider than 95 % there."""
    assert covered[interval] >= 0.95
