"""Progress on stderr: a bar with an ETA on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Counts units of work up to a total, with a short note on how it goes.

    Use as a context manager. With `enabled=False` (ranks other than 0) it shows nothing.
    """

    def __init__(self, what: str, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self.what, self.total, self.done = what, total, done
        self.console = Console(stderr=True)
        self.enabled, self.lines = enabled, enabled and not self.console.is_terminal
        self._first, self._began = done, time.monotonic()
        self._printed = self._began
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
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
        """Count work that was done."""
        self.done += amount
        self._bar.update(self._task, completed=self.done, note=note)
        now = time.monotonic()
        finished = self.done >= self.total
        if self.lines and (finished or now - self._printed > SECONDS_BETWEEN_LINES):
            self._printed = now
            left = (now - self._began) / max(1, self.done - self._first) * (self.total - self.done)
            eta = "" if finished else f", {left:.0f} s left"
            text = f"{self.what} {self.done}/{self.total} {note}{eta}"
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)
