"""The report of a curation: counts by rule, and examples, as text or JSON."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from labeler.console import out
from schemas.printable import one_line

SHOWN = 160
"""Characters of an example."""


@dataclass(frozen=True)
class Count:
    """Sums over rows."""

    rows: int
    labels: int
    tokens: int


@dataclass(frozen=True)
class Example:
    """A removed row: its id/chunk/sample, the reason, the beginning of its answer."""

    row: str
    why: str
    answer: str


@dataclass(frozen=True)
class Removed:
    """The rows that a rule removed.

    Attributes:
        rule: the flag.
        setting: the flag's value.
        removed: rows removed from those that the earlier rules left.
        alone: rows it would remove from all rows; None if that was not counted.
        examples: the first removed rows.
        faults: rows that the verifier could not judge, and why; they are removed, too.
    """

    rule: str
    setting: str
    removed: Count
    alone: Count | None
    examples: list[Example]
    faults: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The result of a curation.

    Attributes:
        before: counts of all rows.
        rules: the rules, in the order of application.
        after: counts of the rows that are left.
        parts: counts by part of the split; without `--split`, one part named ''.
    """

    before: Count
    rules: list[Removed]
    after: Count
    parts: dict[str, Count]


def print_report(report: Report) -> None:
    """Print the counts as a table, then the examples."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rule")
    table.add_column("setting", overflow="fold", max_width=48)
    for name in ("rows", "labels", "tokens", "rows alone"):
        table.add_column(name, justify="right")
    table.add_row("all rows", "", *_cells(report.before), "")
    for one in report.rules:
        alone = "–" if one.alone is None else f"{one.alone.rows:,}"
        cells = [f"-{cell}" if cell != "0" else cell for cell in _cells(one.removed)]
        table.add_row(one.rule, one_line(one.setting), *cells, alone)
    table.add_row("left", "", *_cells(report.after), "")
    if len(report.parts) > 1:
        for name, part in report.parts.items():
            table.add_row(f"  {name}", "", *_cells(part), "")
    out.print(table)
    for one in report.rules:
        if one.examples:
            out.print(f"\nremoved by {one.rule} {one_line(one.setting)}")
        for example in one.examples:
            reason = f" ({one_line(example.why)})" if example.why else ""
            out.print(f"  {one_line(example.row)}{reason}")
            out.print(f"    {one_line(example.answer)}", style="dim")
        if one.faults:
            out.print(f"\n{len(one.faults)} rows could not be judged by {one.rule}")
            for row, fault in list(one.faults.items())[:10]:
                out.print(f"  {one_line(row)}: {one_line(fault)}")


def _cells(count: Count) -> list[str]:
    return [f"{n:,}" for n in (count.rows, count.labels, count.tokens)]


def shortened(text: str) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
