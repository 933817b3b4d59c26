"""The HTML page of a selection: the ranking, and the learning curves with their forecasts."""

from __future__ import annotations

from markupsafe import Markup

from schemas import __version__
from schemas.printable import one_line
from trainer.report.layout import (
    COLORS,
    QUIET,
    environment,
    has_matplotlib,
    keep_names_plain,
    new_figure,
    svg,
)
from trainer.select.select_record import SelectRecord
from trainer.select.select_tables import HEADINGS, METRICS, cells, share

TEMPLATE = "select/select.html.jinja"


def render_page(record: SelectRecord) -> str:
    """Return the page; the figure is left out where matplotlib is not installed."""
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=f"Selection: {record.best}",
            version=__version__,
            record=record,
            rows=[(row, cells(row)) for row in record.ranked()],
            heading=HEADINGS[record.metric],
            metric=METRICS[record.metric],
            share=share(record),
            figure=_figure(record) if has_matplotlib() else None,
        )
    )


def _figure(record: SelectRecord) -> Markup:
    """Draw the curves after the first step, the best last and on top."""
    with new_figure(1, 9.5, 4.6) as (figure, (axis,)):
        ranked = [row for row in record.ranked() if row.step]
        for number, row in reversed(list(enumerate(ranked))):
            is_named = number < len(COLORS)
            color = COLORS[number] if is_named else QUIET
            points = [(step, value) for step, value in row.curve if step]
            axis.plot(
                *zip(*points),
                color=color,
                lw=1.6 if is_named else 0.7,
                marker=".",
                label=one_line(row.name) if is_named else None,
            )
            if row.forecasts:
                last = row.forecasts[-1]
                bars = [[last.value - last.low], [last.high - last.value]]
                x = record.rungs[-1].step * (1 + 0.01 * number)  # side by side
                axis.errorbar([x], [last.value], bars, color=color, capsize=3, fmt="_")
        axis.set_xlabel("step")
        axis.set_ylabel(f"{HEADINGS[record.metric]} on the probe (nats per label)")
        axis.grid(alpha=0.2)
        handles = axis.get_legend_handles_labels()
        keep_names_plain(
            figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
        )
        return svg(figure, "Learning curves of the candidates", "curves")
