"""Facts of a whole label set, counted row group by row group."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import polars as pl

from labeler.console import progress
from labeler.labelsets.inspect.histograms import Histogram, HistogramFacts, length_edges
from labeler.labelsets.inspect.outliers import OutlierRow, Outliers, rounded
from schemas import LabelSet
from schemas.arrow import KEY_COLUMNS
from schemas.codec import LABEL_COLUMNS
from schemas.journal import read_rejects
from schemas.polars_ext import LabelExpr, LazyLabels
from schemas.redact import redacted

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
COVERAGE = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
NATS = tuple(x / 2 for x in range(25))
"""Edges for entropies and NLL; the last bin holds everything above 12 nats."""
MEANS = ("mean_nll", "mean_entropy", "coverage")


@dataclass
class _Counts:
    """Sums over the rows and positions so far."""

    coverage: Histogram = field(default_factory=lambda: Histogram(COVERAGE))
    entropy: Histogram = field(default_factory=lambda: Histogram(NATS))
    nll: Histogram = field(default_factory=lambda: Histogram(NATS))
    full_entropy: bool = True
    lengths: pl.DataFrame = field(default_factory=pl.DataFrame)
    finish: pl.DataFrame = field(default_factory=pl.DataFrame)
    sources: pl.DataFrame = field(default_factory=pl.DataFrame)
    kinds: pl.DataFrame = field(default_factory=pl.DataFrame)
    outliers: Outliers = field(default_factory=Outliers)

    def add(self, rows: pl.DataFrame) -> None:
        """Count the rows of a row group and their labels."""
        logs, tokens = LabelExpr(pl.col("topk_logprobs")), LabelExpr(pl.col("input_ids"))
        positions = (
            LazyLabels(rows.lazy())
            .explode("kind", "topk_logprobs", "tail_logprob", "token_logprob", "entropy")
            .select(
                "kind",
                n=pl.lit(1),
                nll=-pl.col("token_logprob").cast(pl.Float32),
                entropy=pl.coalesce("entropy", logs.entropy("tail_logprob")),
                coverage=1 - pl.col("tail_logprob").cast(pl.Float32).exp(),
            )
            .collect()
        )
        self.coverage.add(positions["coverage"].to_numpy())
        self.entropy.add(positions["entropy"].to_numpy())
        self.nll.add(positions["nll"].to_numpy())
        self.full_entropy &= rows["entropy"].null_count() == 0
        labels = pl.col("n_labels")
        weighted = rows.with_columns((pl.col(name) * labels).fill_null(0.0) for name in MEANS)
        per_row = [pl.len().alias("rows"), labels.sum().alias("labels")]
        sums = [pl.col(name).cast(pl.Float64).sum() for name in MEANS]
        self.lengths = _summed(self.lengths, rows.group_by("n_tokens").len())
        self.finish = _summed(self.finish, rows.group_by("finish_reason").len())
        self.sources = _summed(self.sources, weighted.group_by("source").agg(*per_row, *sums))
        by_kind = positions.group_by("kind").agg(
            pl.col("n").sum().alias("labels"),
            *(pl.col(name).cast(pl.Float64).sum() for name in ("nll", "entropy", "coverage")),
        )
        self.kinds = _summed(self.kinds, by_kind)
        self.outliers.add(rows.with_columns(tokens=tokens.at("spans")))


def _summed(so_far: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """Add up the rows with the same first column."""
    both = more if so_far.is_empty() else pl.concat([so_far, more], how="vertical_relaxed")
    return both.group_by(both.columns[0]).sum()


class StateFacts(TypedDict):
    """The hidden states of a label set; `kl` in nats was measured when their basis was fitted."""

    layers: list[str]
    codec: str
    dimensions: int
    bytes: int
    bytes_per_label: float
    kl: float | None


class SetFacts(TypedDict):
    """Facts of a label set or view that its manifest and index hold."""

    path: str
    status: str
    view: dict[str, object] | None
    mode: str
    k: int
    draws: int | None
    ids_from: str | None
    label_temperatures: list[float]
    keep_positions: str | None
    codec: str
    teacher: str | None
    teacher_weights: str
    dtype: str
    head_dtype: str
    vocab_size: int
    shards: int
    row_groups: int
    rows: int
    tokens: int
    labels: int
    rejects: int
    bytes: int
    bytes_per_label: float | None
    states: StateFacts | None


class Lengths(TypedDict):
    """Lengths of rows in tokens."""

    shortest: int | None
    median: float | None
    longest: int | None


class Histograms(TypedDict):
    """Histograms over positions, and over the lengths of rows."""

    coverage: HistogramFacts
    entropy: HistogramFacts
    nll: HistogramFacts
    row_tokens: HistogramFacts


Quantiles = dict[float, float | None]
Group = dict[str, str | int | float | None]
"""Counts and means of one source or kind of span, which stands under `source` or `kind`."""


class CountedFacts(TypedDict):
    """Facts of a label set or view that are counted over its rows."""

    perplexity: float | None
    mean_nll: float | None
    mean_entropy: float | None
    mean_coverage: float | None
    entropy_of: str
    coverage_quantiles: Quantiles
    entropy_quantiles: Quantiles
    nll_quantiles: Quantiles
    row_tokens: Lengths
    finish_reasons: dict[str, int]
    histograms: Histograms
    sources: list[Group]
    kinds: list[Group]
    outliers: dict[str, list[OutlierRow]]


class Summary(SetFacts, CountedFacts):
    """All facts of a label set or view, as JSON values."""


def summarize(path: Path | str, labels: LabelSet) -> Summary:
    """Return the facts of a label set or view.

    Every row group is read once, and verified. Memory grows only with the number of sources and of
    distinct lengths.

    Args:
        path: path or URL of the set or view, as given.
        labels: the same, opened.

    Raises:
        LabelSetError: a shard is altered.
    """
    counted = _Counts()
    columns = [*KEY_COLUMNS, "source", "finish_reason", "n_tokens", "n_labels", *MEANS]
    columns += ["input_ids", "spans", *LABEL_COLUMNS, "entropy"]
    with progress("row groups") as bar:
        for group in bar.track(labels.row_groups, description="reading"):
            counted.add(pl.DataFrame(labels.read_row_group(group, columns)))
    return {**_set_facts(path, labels), **_counted_facts(counted)}


def _set_facts(path: Path | str, labels: LabelSet) -> SetFacts:
    identity, totals = labels.manifest.identity, labels.manifest.totals
    per_label = round(labels.stored_bytes / max(1, labels.labels), 1)
    return {
        "path": redacted(str(path)),
        "status": labels.manifest.status,
        "view": None if labels.view is None else labels.view.made,
        "mode": identity.mode,
        "k": identity.k,
        "draws": identity.draws,
        "ids_from": identity.ids_from,
        "label_temperatures": list(identity.label_temperatures or ()),
        "keep_positions": identity.keep_positions,
        "codec": labels.manifest.codec,
        "teacher": labels.manifest.provenance.get("teacher"),
        "teacher_weights": identity.weights,
        "dtype": identity.dtype,
        "head_dtype": identity.head_dtype,
        "vocab_size": identity.vocab_size,
        "shards": len(labels.shards),
        "row_groups": len(labels.row_groups),
        "rows": labels.rows,
        "tokens": labels.tokens,
        "labels": labels.labels,
        "rejects": read_rejects(labels.records_dir).num_rows if totals is None else totals.rejects,
        "bytes": labels.stored_bytes,
        "bytes_per_label": per_label if labels.view is None else None,
        "states": _state_facts(labels),
    }


def _state_facts(labels: LabelSet) -> StateFacts | None:
    if labels.states is None:
        return None
    stored, everything = labels.hidden.stored_bytes, labels.hidden.groups.totals[1]
    return {
        "layers": list(labels.states.layers),
        "codec": labels.states.codec,
        "dimensions": labels.states.dimensions,
        "bytes": stored,
        "bytes_per_label": round(stored / max(1, everything), 1),
        "kl": labels.states.kl_measured,
    }


def _counted_facts(counted: _Counts) -> CountedFacts:
    sources = _means(counted.sources, MEANS).sort("labels", "source", descending=[True, False])
    kinds = _means(counted.kinds, ("nll", "entropy", "coverage")).sort("labels", descending=True)
    total = counted.sources.select(pl.col("labels", *MEANS).sum()) if len(sources) else None
    nll, entropy, coverage = (
        total[name].item() / max(1, total["labels"].item()) if total is not None else math.nan
        for name in MEANS
    )
    lengths = counted.lengths.sort("n_tokens") if len(counted.lengths) else None
    return {
        "perplexity": rounded(math.exp(min(nll, 700.0))),
        "mean_nll": rounded(nll),
        "mean_entropy": rounded(entropy),
        "mean_coverage": rounded(coverage),
        "entropy_of": "all ids" if counted.full_entropy else "top-k and tail",
        "coverage_quantiles": _quantiles(counted.coverage),
        "entropy_quantiles": _quantiles(counted.entropy),
        "nll_quantiles": _quantiles(counted.nll),
        "row_tokens": _length_facts(lengths),
        "finish_reasons": {
            str(reason): count for reason, count in counted.finish.sort(pl.all()).rows()
        },
        "histograms": {
            "coverage": counted.coverage.facts(),
            "entropy": counted.entropy.facts(),
            "nll": counted.nll.facts(),
            "row_tokens": _length_histogram(lengths),
        },
        "sources": sources.to_dicts(),
        "kinds": kinds.to_dicts(),
        "outliers": counted.outliers.facts(),
    }


def _quantiles(histogram: Histogram) -> Quantiles:
    return {q: rounded(histogram.quantile(q)) for q in QUANTILES}


def _means(sums: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Turn sums over labels into means, named `mean_`...; null for groups without labels."""
    if sums.is_empty():
        return pl.DataFrame(schema={"source": pl.String, "labels": pl.Int64})
    mean = {
        f"mean_{name.removeprefix('mean_')}": pl.when(pl.col("labels") > 0)
        .then(pl.col(name) / pl.col("labels"))
        .round(4)
        for name in names
    }
    return sums.with_columns(**mean).drop(set(names) - set(mean))


def _length_facts(lengths: pl.DataFrame | None) -> Lengths:
    if lengths is None:
        return {"shortest": None, "median": None, "longest": None}
    upto = lengths["len"].cum_sum()
    middle = [int(np.searchsorted(upto, (upto[-1] + odd) / 2)) for odd in (0, 1)]
    return {
        "shortest": lengths["n_tokens"][0],
        "median": float(np.mean([lengths["n_tokens"][i] for i in middle])),
        "longest": lengths["n_tokens"][-1],
    }


def _length_histogram(lengths: pl.DataFrame | None) -> HistogramFacts:
    if lengths is None:
        return {"edges": [], "counts": []}
    edges = length_edges(lengths["n_tokens"][0], lengths["n_tokens"][-1])
    counts, _ = np.histogram(lengths["n_tokens"], edges, weights=lengths["len"])
    return {"edges": edges, "counts": counts.astype(int).tolist()}
