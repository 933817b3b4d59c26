"""Output of the commands: progress on stderr, and tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich import box
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from schemas.terminal import DataConsole

SECONDS_BETWEEN_LINES = 15.0
TABLE_WIDTH = 100


def message_console() -> DataConsole:
    """Return the console for messages: stderr, lines unbroken."""
    return DataConsole(stderr=True)


def table_console() -> DataConsole:
    """Return the console for tables: stdout; a pipe has no width, so numbers are never cut off."""
    console = DataConsole(soft_wrap=False)
    wide = DataConsole(width=TABLE_WIDTH, soft_wrap=False)
    return console if console.is_terminal else wide


class ProgressBar:
    """Progress towards a total: a bar with an ETA on a terminal, periodic lines otherwise.

    Use as a context manager.

    Args:
        what: the name of the work.
        total: units of work; `done` of them are done already.
        enabled: False shows nothing (ranks other than 0).
    """

    def __init__(self, what: str, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self.what, self.total, self.done = what, total, done
        self.console = DataConsole(stderr=True)
        self.lines = enabled and not self.console.is_terminal
        self._first, self._began = done, time.monotonic()
        self._printed = self._began
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not enabled or self.lines,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make room on the terminal for another bar."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count finished work, and show a note on its state."""
        self.done += amount
        self._bar.update(self._task, completed=self.done, note=note)
        now = time.monotonic()
        finished = self.done >= self.total
        if self.lines and (finished or now - self._printed > SECONDS_BETWEEN_LINES):
            self._printed = now
            left = (now - self._began) / max(1, self.done - self._first) * (self.total - self.done)
            eta = "" if finished else f", {left:.0f} s left"
            text = f"{self.what} {self.done}/{self.total} {note}{eta}"
            self.console.print(text)


def number_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """Return an empty table: names, which fold where the terminal is narrow, then numbers."""
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # ten columns must fit a terminal of 80
    )
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def number(value: float | None, decimals: int, *, at_least: bool = False) -> str:
    """Return a number with its thousands separated; `at_least` marks a lower bound."""
    return "–" if value is None else f"{'≥' if at_least else ''}{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if share is None else f"{share:.1%}"


def times(ratio: float | None) -> str:
    """Return a ratio such as 2.50×."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def size(value: float | None, unit: str) -> str:
    """Return a size in thousands, millions or billions of a unit."""
    if value is None:
        return "–"
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()
