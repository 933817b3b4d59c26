"""What the user sees while a command works: progress with an ETA, sizes and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
"""Results: standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and notes: standard error, so that `--json` output can be piped."""


def progress(unit: str, *, note: bool = False) -> Progress:
    """A progress bar over `unit`s with elapsed time and ETA; with `note`, a task field to show."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}", justify="right") if note else TextColumn(""),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


@contextmanager
def counting(
    unit: str, description: str, *, total: int | None = None
) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """What passes items on and shows their number and speed: for totals that nobody knows."""
    with progress(unit, note=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def counted(items: Iterable[T]) -> Iterator[T]:
            started = time.perf_counter()
            for count, item in enumerate(items, 1):
                yield item
                if count % 100 == 0:
                    speed = count / (time.perf_counter() - started)
                    bar.update(task, completed=count, note=f"| {speed:,.0f} {unit}/s")

        yield counted


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KB' (powers of 1000, as disks are sold)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """4000 -> '1 h 7 min'."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
