"""Output of the commands: results, notes, progress with an ETA, sizes and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from schemas.terminal import DataConsole

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

out = DataConsole()
"""Results: standard output."""
err = DataConsole(stderr=True)
"""Progress and notes: standard error, so that the output of `--json` can be piped."""


def progress(unit: str, *, note: bool = False) -> Progress:
    """Return a progress bar that counts `unit`s and shows elapsed time and ETA.

    Args:
        unit: plural noun for the counted things, such as `rows`.
        note: show the task's field `note`, too.
    """
    from rich.progress import (  # not needed for --help
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[note]}" if note else "", justify="right", markup=False),
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
    """Yield a function that passes items through and shows their number and speed.

    Args:
        unit: plural noun for the items.
        description: what is done with them, such as `reading`.
        total: number of items, if it is known.
    """
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
    """Format a size: 1536 -> '1.5 KB' (powers of 1000, as disks are sold)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Format a duration: 4000 -> '1 h 7 min'."""
    if seconds < 1:
        return "under 1 s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
