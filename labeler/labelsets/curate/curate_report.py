"""What a curation removed: counts by rule, and examples, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from labeler.console import out

SHOWN = 160
"""Characters of an example."""


@dataclass(frozen=True)
class Count:
    """Sums over some rows."""

    rows: int
    labels: int
    tokens: int


@dataclass(frozen=True)
class Example:
    """A removed row: its id/chunk/sample, why it was removed, the beginning of its answer."""

    row: str
    why: str
    answer: str


@dataclass(frozen=True)
class Removed:
    """What a rule removed.

    Attributes:
        rule, setting: the flag and its value.
        removed: of the rows that the rules before it had left.
        alone: what it would have removed of all rows; None where that was not counted.
        examples: the first of them.
        faults: rows that a verifier could not judge, and why: they are removed, too.
    """

    rule: str
    setting: str
    removed: Count
    alone: Count | None
    examples: list[Example]
    faults: dict[str, str]


@dataclass(frozen=True)
class Report:
    """A curation: from what, by which rules, to what.

    Attributes:
        before, after: all rows, and those left.
        rules: in the order in which they were applied.
        parts: what is left, by the name of the part; one without `--split`, named ''.
    """

    before: Count
    rules: list[Removed]
    after: Count
    parts: dict[str, Count]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


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
        table.add_row(Text(one.rule), Text(escaped(one.setting)), *cells, alone)
    table.add_row("left", "", *_cells(report.after), "")
    if len(report.parts) > 1:
        for name, part in report.parts.items():
            table.add_row(f"  {name}", "", *_cells(part), "")
    out.print(table)
    for one in report.rules:
        if one.examples:
            out.print(f"\nremoved by {one.rule} {escaped(one.setting)}", markup=False)
        for example in one.examples:
            reason = f" ({escaped(example.why)})" if example.why else ""
            out.print(f"  {escaped(example.row)}{reason}", markup=False)
            out.print(f"    {escaped(example.answer)}", markup=False, style="dim")
        if one.faults:
            out.print(f"\n{len(one.faults)} rows could not be judged by {one.rule}", markup=False)
            for row, fault in list(one.faults.items())[:10]:
                out.print(f"  {escaped(row)}: {escaped(fault)}", markup=False)


def _cells(count: Count) -> list[str]:
    return [f"{n:,}" for n in (count.rows, count.labels, count.tokens)]


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def escaped(text: str) -> str:
    """Text that a terminal cannot take for commands: what is not printable as a backslash code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
