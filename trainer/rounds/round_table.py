"""The table of `trainer rounds`."""

from __future__ import annotations

from rich.console import Console

from trainer.console import number, number_table, percent, size
from trainer.rounds.rounds_record import RoundRecord, RoundsRecord

CAPTION = (
    "KL and reverse KL: of the student that answered to the teacher, on its own answers to prompts "
    "that no student learns from"
)


def print_rounds(console: Console, record: RoundsRecord) -> None:
    """Print a line per round, and why no further one follows."""
    columns = ("KL", "95 %", "reverse", "answers", "kept", "labels", "size", "minutes")
    table = number_table("rounds", "round", *columns, caption=CAPTION)
    best = record.best
    for each in record.rounds:
        star = "* " if each.student == best else "  "
        table.add_row(star + str(each.number), *_cells(each))
    console.print(table)
    console.print(f"* lowest KL: {best}", soft_wrap=True, highlight=False)
    console.print(f"ended after {record.stopped}", soft_wrap=True, highlight=False)


def _cells(each: RoundRecord) -> list[str]:
    interval = each.kl_interval
    bounds = "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    kept = each.kept / each.answers if each.answers else None
    return [
        number(each.kl, 4),
        bounds,
        number(each.reverse_kl, 4),
        str(each.answers),
        percent(kept),
        size(each.labels, ""),
        size(each.bytes, "B"),
        number(sum(each.seconds.values()) / 60, 1),
    ]
