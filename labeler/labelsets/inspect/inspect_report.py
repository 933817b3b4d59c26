"""What `labeler inspect` prints of a whole set: facts, histograms, sources, rows that stand out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from labeler.console import human_bytes, out
from labeler.labelsets.common.vocabulary import open_vocabulary
from labeler.labelsets.inspect.histograms import bars, bin_names
from labeler.labelsets.inspect.inspect_config import InspectConfig
from labeler.labelsets.inspect.outliers import BY, names
from labeler.labelsets.inspect.row_view import print_row
from labeler.labelsets.inspect.summary import QUANTILES, summarize
from schemas import open_label_set
from schemas.journal import read_rejects

SOURCES = 10
"""Sources printed; `--json` has them all."""
BESIDE = 77
"""Characters beside a row's text, which gets the rest of the line."""


def run_inspect(config: InspectConfig) -> int:
    """Print the rejects, one row or the summary of a label set, and return 0.

    Raises:
        LabelSetError: the set cannot be opened, a shard is altered, or the row is missing.
    """
    if config.rejects:
        print_rejects(config.labels, as_json=config.as_json)
    elif config.row is not None:
        print_row(
            config.labels,
            config.row,
            start=config.start,
            count=config.positions,
            allow_partial=config.allow_partial,
            as_json=config.as_json,
        )
    else:
        print_summary(config.labels, allow_partial=config.allow_partial, as_json=config.as_json)
    return 0


def print_summary(path: Path, *, allow_partial: bool, as_json: bool) -> None:
    """Print the facts, histograms, sources and outliers of a whole set."""
    facts = summarize(path, allow_partial=allow_partial)
    if as_json:
        print(json.dumps(facts))
        return
    out.print(_facts(facts))
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
        _print_outliers(path, facts, allow_partial=allow_partial)


def _facts(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    size = f"{human_bytes(facts['bytes'])}"
    if facts["bytes_per_label"] is None:
        size += " (the whole set that this is a view of)"
    else:
        size += f", {facts['bytes_per_label']} B a label at k = {facts['k']}"
        size += f" and {facts['draws']} draws" if facts["draws"] else ""
    shown = {
        "label set": f"{facts['path']} ({facts['status']}, {facts['codec']}, mode {facts['mode']})",
        "teacher": f"{facts['teacher']}, {facts['dtype']}, head in {facts['head_dtype']}",
        "": f"weights {facts['teacher_weights'][:16]}..., vocabulary {facts['vocab_size']:,}",
        "rows": f"{facts['rows']:,} in {facts['shards']} shards, {facts['row_groups']} row groups; "
        f"{facts['rejects']} rejects",
        "tokens": f"{facts['tokens']:,}, labeled {facts['labels']:,}",
        "size": size,
    }
    if facts["labels"]:
        shown["perplexity"] = f"{facts['perplexity']:.2f} of the teacher on the labeled tokens"
    for name, value in shown.items():
        table.add_row(name, value)
    return table


def _percentiles(facts: dict[str, Any]) -> Table:
    title = "by position: mean, and the value that so many % are below"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for heading in ("mean", *(f"{100 * q:g} %" for q in QUANTILES)):
        table.add_column(heading, justify="right")
    for name, what in (
        ("coverage", f"mass in the top {facts['k']}"),
        ("entropy", f"entropy in nats, of {facts['entropy_of']}"),
        ("nll", "NLL of the actual token in nats"),
    ):
        values = (facts[f"mean_{name}"], *facts[f"{name}_quantiles"].values())
        table.add_row(what, *map(_figure, values))
    return table


def _histograms(facts: dict[str, Any]) -> list[list[Table]]:
    found = facts["histograms"]
    tables = []
    if facts["labels"]:
        for name, title, color in (
            ("coverage", f"mass in the top {facts['k']}, by position", "green"),
            ("entropy", "entropy in nats, by position", "yellow"),
            ("nll", "NLL of the actual token in nats", "red"),
        ):
            edges, counts = _cut(found[name]["edges"], found[name]["counts"])
            labels = bin_names(edges, open_end=name != "coverage")
            tables.append(bars(title, labels, counts, color))
    if facts["rows"]:
        lengths = found["row_tokens"]
        labels = bin_names(lengths["edges"], whole=True)
        tables.append(bars("tokens a row", labels, lengths["counts"], "blue"))
    if list(facts["finish_reasons"]) not in ([], ["None"]):
        reasons = facts["finish_reasons"]
        tables.append(bars("finished by", list(reasons), list(reasons.values()), "magenta"))
    return [tables[i : i + 2] for i in range(0, len(tables), 2)]


def _cut(edges: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Bins of half a nat up to 3, of a nat above, without the empty ones at the end."""
    if edges[-1] <= 1:
        return list(edges), list(counts)
    fine = edges.index(3.0)
    coarse = [sum(counts[i : i + 2]) for i in range(fine, len(counts), 2)]
    merged, ends = [*counts[:fine], *coarse], [*edges[:fine], *edges[fine::2]]
    while len(merged) > fine and not merged[-1]:
        merged, ends = merged[:-1], ends[:-1]
    return ends, merged


def _groups(title: str, name: str, groups: list[dict[str, Any]]) -> Table:
    table = Table(
        title=f"{title}: {len(groups)}", title_justify="left", title_style="bold", box=None
    )
    table.add_column(name, overflow="ellipsis", max_width=40, no_wrap=True)
    columns = ("rows", "labels", "mean_nll", "mean_entropy", "mean_coverage")
    there = [column for column in columns if column in groups[0]]
    for column in there:
        table.add_column(column.replace("mean_", "").replace("nll", "NLL"), justify="right")
    for group in groups[:SOURCES]:
        label = "(none)" if group[name] is None else group[name]
        table.add_row(Text(label), *(_figure(group[column]) for column in there))
    if len(groups) > SOURCES:
        table.add_row(f"... {len(groups) - SOURCES} more, all in --json")
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _print_outliers(path: Path, facts: dict[str, Any], *, allow_partial: bool) -> None:
    labels = open_label_set(path, allow_partial=allow_partial)
    vocabulary = open_vocabulary(labels.tokenizer_dir, facts["vocab_size"])
    table = Table(box=None, title="rows that stand out", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("row", overflow="ellipsis", max_width=22, no_wrap=True)
    for column in ("tokens", "NLL", "coverage", "repeats"):
        table.add_column(column, justify="right")
    table.add_column("labeled text begins", no_wrap=True)
    for kind in BY:
        rows = facts["outliers"][kind]
        for row, name in zip(rows[:3], names(rows)):
            [text] = vocabulary.decode([row["tokens"]])
            table.add_row(
                kind if row is rows[0] else "",
                Text(name),
                _figure(row["n_tokens"]),
                _figure(row["mean_nll"]),
                _figure(row["coverage"]),
                f"{100 * row['repetition']:.0f}%",
                Text(" ".join(text.split())[: max(10, out.width - BESIDE)]),
            )
    out.print()
    out.print(table)
    out.print(
        "repeats: share of 4-grams of labeled tokens that stood before; read a row with --row ID",
        style="dim",
    )


def print_rejects(path: Path, *, as_json: bool) -> None:
    """Print what could not be labeled, and why."""
    labels = open_label_set(path, allow_partial=True)
    rejects = read_rejects(labels.path).to_pylist()
    for reject in rejects:
        out.print(json.dumps(reject) if as_json else f"{reject['id']}: {reject['reason']}")
    if not as_json:
        out.print(f"{len(rejects)} rejects")
