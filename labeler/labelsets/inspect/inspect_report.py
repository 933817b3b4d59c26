"""Print facts, histograms, sources, outliers and rejects of a label set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from labeler.console import human_bytes, out
from labeler.labelsets.common.vocabulary import open_vocabulary
from labeler.labelsets.inspect.histograms import bars, bin_names
from labeler.labelsets.inspect.outliers import BY, OutlierRow
from labeler.labelsets.inspect.row_view import row_argument
from labeler.labelsets.inspect.summary import QUANTILES, Group, Summary, summarize
from schemas import LabelSet, open_label_set
from schemas.journal import read_rejects
from schemas.printable import one_line

SOURCES = 10
"""Sources printed; `--json` prints all."""
BESIDE = 77
"""Characters beside a row's text, which takes the rest of the line."""


def print_summary(path: Path | str, labels: LabelSet, *, as_json: bool) -> None:
    """Print the facts, histograms, sources and outliers of a whole set."""
    facts = summarize(path, labels)
    if as_json:
        print(json.dumps(facts))
        return
    out.print(_facts(facts, labels.manifest.identity.late_settings))
    if facts["labels"]:
        out.print()
        out.print(_percentiles(facts))
    for pair in _histograms(facts):
        out.print()
        side_by_side = Table.grid(padding=(0, 4))
        side_by_side.add_row(*pair)
        out.print(side_by_side)
    if len(facts["sources"]) > 1:
        out.print()
        out.print(_groups("sources", "source", facts["sources"]))
    if len(facts["kinds"]) > 1:
        out.print()
        out.print(_groups("kinds of span", "kind", facts["kinds"]))
    if facts["rows"]:
        _print_outliers(facts["outliers"], labels)


def _facts(facts: Summary, late_settings: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    size = f"{human_bytes(facts['bytes'])}"
    if facts["bytes_per_label"] is None:
        size += " (the whole set behind the view)"
    else:
        size += f", {facts['bytes_per_label']} B per label at k = {facts['k']}"
        size += f" and {facts['draws']} draws" if facts["draws"] else ""
    shown = {
        "label set": f"{facts['path']} ({facts['status']}, {facts['codec']}, mode {facts['mode']})",
        "teacher": f"{facts['teacher']}, {facts['dtype']}, head in {facts['head_dtype']}",
        "": f"weights {facts['teacher_weights'][:16]}..., vocabulary {facts['vocab_size']:,}",
        "rows": f"{facts['rows']:,} in {facts['shards']} shards, {facts['row_groups']} row groups; "
        f"{facts['rejects']} rejects",
        "tokens": f"{facts['tokens']:,}, labeled {facts['labels']:,}",
        "size": size,
        **late_settings,
    }
    if (states := facts["states"]) is not None:
        kl = "" if states["kl"] is None else f", mean KL {states['kl']:.2g} nats"
        shown["hidden states"] = (
            f"{', '.join(states['layers'])}: {human_bytes(states['bytes'])}, "
            f"{states['bytes_per_label']} B per label in {states['codec']}{kl}"
        )
    if facts["labels"]:
        shown["perplexity"] = f"{facts['perplexity']:.2f}, the teacher's on the labeled tokens"
    for name, value in shown.items():
        table.add_row(name, value)
    return table


def _percentiles(facts: Summary) -> Table:
    title = "per position: mean and percentiles"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for heading in ("mean", *(f"{100 * q:g} %" for q in QUANTILES)):
        table.add_column(heading, justify="right")
    coverage, entropy = (
        f"mass in the top {facts['k']}",
        f"entropy in nats, over {facts['entropy_of']}",
    )
    for what, mean, quantiles in (
        (coverage, facts["mean_coverage"], facts["coverage_quantiles"]),
        (entropy, facts["mean_entropy"], facts["entropy_quantiles"]),
        ("NLL of the actual token in nats", facts["mean_nll"], facts["nll_quantiles"]),
    ):
        table.add_row(what, *map(_figure, (mean, *quantiles.values())))
    return table


def _histograms(facts: Summary) -> list[list[Table]]:
    found = facts["histograms"]
    tables = []
    if facts["labels"]:
        mass = found["coverage"]
        title = f"mass in the top {facts['k']}, per position"
        tables.append(bars(title, bin_names(mass["edges"]), mass["counts"], "green"))
        for nats, title, color in (
            (found["entropy"], "entropy in nats, per position", "yellow"),
            (found["nll"], "NLL of the actual token in nats", "red"),
        ):
            edges, counts = _coarser(nats["edges"], nats["counts"])
            tables.append(bars(title, bin_names(edges, open_end=True), counts, color))
    if facts["rows"]:
        lengths = found["row_tokens"]
        labels = bin_names(lengths["edges"], whole=True)
        tables.append(bars("tokens per row", labels, lengths["counts"], "blue"))
    if list(facts["finish_reasons"]) not in ([], ["None"]):
        reasons = facts["finish_reasons"]
        tables.append(bars("finish reason", list(reasons), list(reasons.values()), "magenta"))
    return [tables[i : i + 2] for i in range(0, len(tables), 2)]


def _coarser(edges: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Merge bins above 3 nats in pairs, from half a nat to one, and drop empty ones at the end."""
    fine = edges.index(3.0)
    coarse = [sum(counts[i : i + 2]) for i in range(fine, len(counts), 2)]
    merged, ends = [*counts[:fine], *coarse], [*edges[:fine], *edges[fine::2]]
    while len(merged) > fine and not merged[-1]:
        merged, ends = merged[:-1], ends[:-1]
    return ends, merged


def _groups(title: str, name: str, groups: list[Group]) -> Table:
    table = Table(
        title=f"{title}: {len(groups)}", title_justify="left", title_style="bold", box=None
    )
    table.add_column(name, overflow="ellipsis", max_width=40, no_wrap=True)
    columns = ("rows", "labels", "mean_nll", "mean_entropy", "mean_coverage")
    shown = [column for column in columns if column in groups[0]]
    for column in shown:
        table.add_column(column.replace("mean_", "").replace("nll", "NLL"), justify="right")
    for group in groups[:SOURCES]:
        label = "(none)" if group[name] is None else str(group[name])
        table.add_row(one_line(label), *(_figure(group[column]) for column in shown))
    if len(groups) > SOURCES:
        table.add_row(f"... {len(groups) - SOURCES} more, all in --json")
    return table


def _figure(value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _print_outliers(outliers: dict[str, list[OutlierRow]], labels: LabelSet) -> None:
    vocabulary = open_vocabulary(labels.tokenizer_dir, labels.manifest.identity.vocab_size)
    table = Table(box=None, title="rows that stand out", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("row", overflow="ellipsis", max_width=22, no_wrap=True)
    for column in ("tokens", "NLL", "coverage", "repeats"):
        table.add_column(column, justify="right")
    table.add_column("labeled text begins", no_wrap=True)
    for kind in BY:
        rows = outliers[kind]
        for row in rows[:3]:
            [text] = vocabulary.decode([row["tokens"]])
            table.add_row(
                kind if row is rows[0] else "",
                row_argument(row["id"], row["chunk"], row["sample"]),
                _figure(row["n_tokens"]),
                _figure(row["mean_nll"]),
                _figure(row["coverage"]),
                f"{100 * row['repetition']:.0f}%",
                " ".join(text.split())[: max(10, out.width - BESIDE)],
            )
    out.print()
    out.print(table)
    out.print(
        "repeats: share of repeated 4-grams among labeled tokens; read a row with --row ID",
        style="dim",
    )


def print_rejects(path: Path | str, *, as_json: bool) -> None:
    """Print the records that could not be labeled, and why."""
    labels = open_label_set(path, allow_partial=True)
    rejects = read_rejects(labels.records_dir).to_pylist()
    for reject in rejects:
        if as_json:
            print(json.dumps(reject))
        else:
            out.print(f"{one_line(reject['id'])}: {one_line(reject['reason'])}")
    if not as_json:
        out.print(f"{len(rejects)} rejects")
