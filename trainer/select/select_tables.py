"""The tables of `trainer select`: on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from schemas.printable import one_line
from trainer.console import number, number_table, percent, size
from trainer.report.markdown_text import escape_text
from trainer.select.forecast import LEVEL
from trainer.select.select_record import CandidateRecord, SelectRecord

METRICS = {
    "kl": "KL: forward KL to the teacher on the probe, in nats per label",
    "ce": "CE: cross-entropy on the text of the probe, in nats per token, the same tokens for all "
    "teachers; KL to different teachers does not compare",
}
HEADINGS = {"kl": "KL", "ce": "CE"}


def print_plan(console: Console, record: SelectRecord) -> None:
    """Print the candidates, those that are ruled out and why, and the cost of the rungs."""
    table = number_table("candidates", "candidate", "params", "size", "state")
    for each in record.ranked():
        sizes = [size(each.parameters, ""), size(each.bytes, "B")]
        table.add_row(one_line(each.name), *sizes, each.outcome)
    console.print(table)
    _print_reasons(console, record)
    console.print(_rung_table(record))
    console.print(share(record), soft_wrap=True, highlight=False)


def print_result(console: Console, record: SelectRecord) -> None:
    """Print the ranking, the reason for each elimination, and the cost."""
    heading = HEADINGS[record.metric]
    columns = (heading, "step", "forecast", "params", "size", "state")
    caption = f"{METRICS[record.metric]}. Forecast for the last step, {LEVEL:.0%} interval"
    table = number_table("selection", "candidate", *columns, caption=caption)
    for each in record.ranked():
        table.add_row(one_line(each.name), *cells(each))
    console.print(table)
    _print_reasons(console, record)
    console.print(_rung_table(record))
    console.print(share(record), soft_wrap=True, highlight=False)
    console.print(f"best: {record.best}", soft_wrap=True, highlight=False)


def to_markdown(record: SelectRecord) -> str:
    """Return the report of a selection."""
    return "\n".join(_markdown(record)) + "\n"


def _markdown(record: SelectRecord) -> Iterator[str]:
    best = record.ranked()[0]
    heading = HEADINGS[record.metric]
    yield f"# Selection: {escape_text(best.name)}"
    yield ""
    yield (
        f"The best of {len(record.candidates)} candidates: {heading} {number(best.value, 4)} after "
        f"{best.step} steps. Train it with `trainer train --config {record.config}`. "
        f"{share(record)}."
    )
    for warning in record.warnings:
        yield f"\n**Warning:** {escape_text(warning)}."
    yield "\n## Ranking\n"
    yield f"| candidate | {heading} | step | forecast | parameters | size | state |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for each in record.ranked():
        yield f"| {escape_text(each.name)} | {' | '.join(cells(each))} |"
    yield f"\n{METRICS[record.metric]}. Forecast: for the last step, with its {LEVEL:.0%} interval."
    reasons = [each for each in record.ranked() if each.reason]
    if reasons:
        yield "\n## Why the others are not the best\n"
        for each in reasons:
            yield f"- {escape_text(each.name)}: {each.outcome}: {escape_text(each.reason or '')}"
    yield "\n## Learning curves\n"
    steps = sorted({step for each in record.candidates for step, _ in each.curve})
    yield f"| candidate | {' | '.join(map(str, steps))} |"
    yield f"|---|{'---:|' * len(steps)}"
    for each in record.ranked():
        if each.curve:
            values = dict(each.curve)
            shown = [number(values.get(step), 4) for step in steps]
            yield f"| {escape_text(each.name)} | {' | '.join(shown)} |"
    yield "\n## Cost\n"
    yield "| rung to step | candidates | tokens | PFLOP |"
    yield "|---:|---:|---:|---:|"
    for rung in record.rungs:
        yield f"| {rung.step} | {rung.candidates} | {rung.tokens:,} | {rung.pflop:.3g} |"
    yield "\n## Teachers\n"
    yield "| label set | entropy | top token | stored mass | rejects |"
    yield "|---|---:|---:|---:|---:|"
    for facts in record.teachers:
        shares = (facts.confidence, facts.covered, facts.rejects)
        shown = [f"{number(facts.entropy, 2)} nats", *(percent(each) for each in shares)]
        yield f"| {escape_text(facts.path)} | {' | '.join(shown)} |"


def cells(each: CandidateRecord) -> list[str]:
    """Return the cells of a candidate's row after its name."""
    last = each.forecasts[-1] if each.forecasts else None
    shown = f"{last.value:.3f} ({last.low:.3f}–{last.high:.3f})" if last else "–"
    return [
        number(each.value, 4),
        number(each.step, 0),
        shown,
        size(each.parameters, ""),
        size(each.bytes, "B"),
        each.outcome,
    ]


def _rung_table(record: SelectRecord) -> Table:
    columns = ("candidates", "tokens", "PFLOP", "disk")
    hours = ("hours",) if any(rung.hours is not None for rung in record.rungs) else ()
    table = number_table("rungs", "to step", *columns, *hours)
    for rung in record.rungs:
        row = [str(rung.candidates), f"{rung.tokens:,}", f"{rung.pflop:.3g}"]
        row += [size(rung.disk, "B"), *(number(rung.hours, 2) for _ in hours)]
        table.add_row(str(rung.step), *row)
    return table


def share(record: SelectRecord) -> str:
    """Return what was trained, in words."""
    return (
        f"{record.tokens:,} tokens, {record.share:.0%} of training each candidate to the last step"
    )


def _print_reasons(console: Console, record: SelectRecord) -> None:
    for each in record.ranked():
        if each.reason:
            text = f"{each.outcome}: {one_line(each.name)}: {each.reason}"
            console.print(text, soft_wrap=True, highlight=False, markup=False)
