"""The tables of `trainer evaluate` on a terminal, at most 80 columns wide. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from trainer.console import number, number_table, percent, size
from trainer.evaluate.bootstrap import FEW_DOCUMENTS, LEVEL
from trainer.evaluate.model_differences import differences
from trainer.evaluate.results import (
    ALL_QUALITY,
    BITS_PER_BYTE,
    ECE,
    KL,
    PPL,
    Group,
    Measured,
    MeasuredModel,
    MeasuredTeacher,
    Quality,
)

ModelAt = tuple[Path, MeasuredModel]
GROUP_COLUMNS = tuple(quality for quality in ALL_QUALITY if quality.name != "overlap")


def main_table(models: list[ModelAt], teacher: MeasuredTeacher) -> Table:
    """Return the figures of all models, each with half of its interval below it."""
    lengths = sorted({model.top_k for _, model in models})
    caption = (
        f"± half of the {LEVEL:.0%} interval over documents{_few(teacher.documents)}\n"
        "bits/B: bits per byte of text. top-k: share of the teacher's "
        f"{' or '.join(map(str, lengths)) or 'k'} likeliest\n"
        "tokens among the student's. accept: share of the student's draft tokens that the\n"
        f"teacher accepts, at least. {ECE}"
    )
    table = _table("held-out", "model", ALL_QUALITY, "params", caption=caption)
    ppl = PPL.text(teacher.ppl, at_least=teacher.lower_bound)
    bits = BITS_PER_BYTE.text(teacher.bits_per_byte, at_least=teacher.lower_bound)
    cells = [quality.text(teacher.figure(quality.name)) for quality in ALL_QUALITY[2:]]
    table.add_row("teacher", ppl, bits, *cells, size(teacher.parameters, ""))
    _add_halves(table, teacher, ALL_QUALITY)
    for path, model in models:
        cells = [quality.text(model.figure(quality.name)) for quality in ALL_QUALITY]
        table.add_row(str(path), *cells, size(model.parameters, ""))
        _add_halves(table, model, ALL_QUALITY)
    return table


def differences_table(models: list[ModelAt]) -> Table:
    """Return the differences of all models from the first, each with half of its interval below."""
    (first, reference), *others = models
    caption = (
        f"± half of the {LEVEL:.0%} interval of the difference (paired bootstrap over documents)"
        f"{_few(reference.documents)}; in parentheses where the interval includes 0"
    )
    table = _table(f"difference from {first}", "model", ALL_QUALITY, caption=caption)
    for path, model in others:
        found = differences(model, reference)
        values, halves = [], []
        for quality in ALL_QUALITY:
            difference = found.get(quality.name)
            if difference is None:
                values.append("–")
                halves.append("")
                continue
            text = _signed(quality, difference.value)
            values.append(text if difference.is_clear else f"({text})")
            halves.append(_half(quality, difference.interval))
        table.add_row(str(path), *values)
        table.add_row("", *halves, style="dim")
    return table


def group_table(path: Path, model: MeasuredModel, dimension: str) -> Table:
    """Return the figures of the groups of a dimension, and name the worst."""
    groups = model.by[dimension]
    caption = worst_line(model, dimension) or "no two groups are large enough to be compared"
    if any(not group.intervals for group in groups):
        caption += f"\nno interval: fewer than {FEW_DOCUMENTS} documents"
    title = f"{path} by {dimension}"
    table = _table(title, dimension, GROUP_COLUMNS, "docs", caption=caption)
    for group in groups:
        cells = [quality.text(group.figure(quality.name)) for quality in GROUP_COLUMNS]
        table.add_row(group_name(group), *cells, f"{group.documents:,}")
        _add_halves(table, group, GROUP_COLUMNS)
    return table


def worst_line(model: MeasuredModel, dimension: str) -> str | None:
    """Return a sentence that names the worst group; None if there are not two to compare."""
    worst = model.worst_groups.get(dimension)
    if worst is None:
        return None
    low, high = worst.interval
    text = (
        f"worst {dimension}: {worst.value if worst.value is not None else '(none)'}, "
        f"KL {worst.kl:.4f} (95 %: {low:.4f} to {high:.4f}; all: {model.all.kl:.4f}), "
        f"the worst of {worst.compared} in {worst.share:.0%} of the replicates"
    )
    small = f"; {worst.too_small} too small to compare" if worst.too_small else ""
    return text + small


def exact_line(model: MeasuredModel) -> str | None:
    """Return a sentence on the KL over all ids; None where it was not measured."""
    if model.all.exact_kl is None:
        return None
    half = f" {_half(KL, found)}" if (found := model.intervals.get("exact_kl")) else ""
    return f"KL over all ids {KL.text(model.all.exact_kl)}{half}"


def group_name(group: Group) -> str:
    """Return how a group is shown."""
    if group.pooled:
        return f"({group.pooled} others)"
    return "(none)" if group.value is None else group.value


def _table(title: str, first: str, columns: Sequence[Quality], *more: str, caption: str) -> Table:
    headings = [quality.heading for quality in columns]
    return number_table(title, first, *headings, *more, caption=caption)


def _add_halves(table: Table, measured: Measured, columns: Sequence[Quality]) -> None:
    """Add a row with half of each interval, if there are any."""
    if measured.intervals:
        cells = [
            _half(quality, measured.intervals[quality.name])
            if quality.name in measured.intervals and measured.figure(quality.name) is not None
            else ""
            for quality in columns
        ]
        table.add_row("", *cells, style="dim")


def _half(quality: Quality, interval: tuple[float, float]) -> str:
    return f"±{quality.text((interval[1] - interval[0]) / 2)}"


def _signed(quality: Quality, value: float) -> str:
    text = percent(abs(value)) if quality.decimals is None else number(abs(value), quality.decimals)
    return f"{'-' if value < 0 else '+'}{text}"


def _few(documents: int) -> str:
    if documents >= FEW_DOCUMENTS:
        return ""
    return f" ({documents} documents: it is too narrow)"
