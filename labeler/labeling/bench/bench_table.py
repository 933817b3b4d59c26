"""The figures of `labeler bench` as tables; a figure that is not stable is marked."""

from __future__ import annotations

from rich.table import Table

from labeler.console import err, human_bytes, out
from schemas.bench_results import UNSTABLE, BenchResults, Measured

MARK = "?"
ESTIMATE = "est."


def print_results(results: BenchResults) -> None:
    """Print speeds, memory and energy by model, then latencies by requests at once."""
    shown = _Shown()
    first = results.models[0]
    table = Table(box=None)
    headings = ["model", "reading tokens/s", "generating tokens/s", "vs first", "memory"]
    has_energy = any(model.joules_per_token for model in results.models)
    for heading in headings + ["J/token"] * has_energy:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in results.models:
        ratio = model.generating.relative_to(first.generating)
        cells = [
            model.name,
            shown.text(model.reading, ".0f"),
            shown.text(model.generating, ".1f"),
            "1.00x" if model is first else shown.text(ratio, ".2f", "x"),
            "-" if model.peak_memory_bytes is None else human_bytes(model.peak_memory_bytes),
        ]
        if has_energy:
            mark = f" {ESTIMATE}" if model.energy_is_estimated else ""
            cells.append(shown.text(model.joules_per_token, ".3g") + mark)
        table.add_row(*cells)
    out.print(table)
    latencies = Table(box=None)
    headings = ["requests at once", "model", "first token", "last token", "tokens/s"]
    for heading in headings:
        latencies.add_column(heading, justify="left" if heading == "model" else "right")
    for level in first.latencies:
        for model in results.models:
            found = model.latency(level.concurrency)
            if found is not None:
                latencies.add_row(
                    str(found.concurrency) if model is first else "",
                    model.name,
                    shown.text(found.first_token_s, ".3g", " s"),
                    shown.text(found.last_token_s, ".3g", " s"),
                    shown.text(found.tokens_per_s, ".1f"),
                )
    if latencies.row_count:
        out.print()
        out.print(latencies)
    sources = {model.energy_source for model in results.models if model.energy_is_estimated}
    if sources:
        err.print(
            f"{ESTIMATE} estimated from constants by {' and '.join(map(str, sources))}, not "
            "measured: the machine has no energy counter that can be read"
        )
    if shown.has_marked:
        err.print(
            f"{MARK} not stable: the slowest and the fastest round, which differ by more than "
            f"{UNSTABLE:.0%} of the median, or a single round. Other work on the machine does "
            "that: measure again, with more --repeats"
        )


class _Shown:
    """Figures as text; remembers whether one was marked."""

    def __init__(self) -> None:
        self.has_marked = False

    def text(self, figure: Measured | None, form: str, unit: str = "") -> str:
        """Return the median with half of the range of the rounds; that range if they disagree."""
        if figure is None:
            return "-"
        value = f"{figure.median:{form}}{unit}"
        if figure.is_stable:
            return value + (f" \u00b1{figure.spread / 2:.0%}" if figure.spread is not None else "")
        self.has_marked = True
        if len(figure.rounds) > 1:
            value = f"{min(figure.rounds):{form}} to {max(figure.rounds):{form}}{unit}"
        return f"{value} {MARK}"
