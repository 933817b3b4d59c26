"""The leaderboard: tables on the terminal, and an HTML page with the Pareto front."""

from __future__ import annotations

from markupsafe import Markup
from rich.console import Console

from schemas import __version__
from schemas.printable import one_line
from trainer.console import number, number_table, size
from trainer.evaluate.results import ECE, QUALITY, HeldOutSet
from trainer.report.layout import (
    COLORS,
    QUIET,
    environment,
    keep_names_plain,
    new_figure,
    staircase,
    svg,
)
from trainer.sweep.leaderboard import Group, Row, Spread

TEMPLATE = "sweep/leaderboard.html.jinja"
SPREAD_DECIMALS = {"ppl": 2, "kl": 4, "agreement": 3, "ece": 3}
BY_KL = sorted(QUALITY, key=lambda quality: quality.name != "kl")
"""The metrics, the one that ranks first."""


def render_page(
    title: str, label_set: str, rows: list[Row], groups: list[Group], held_out: HeldOutSet
) -> str:
    """Return the HTML page; the same rows give the same bytes."""
    env = environment()
    env.filters["spread"] = _spread
    timed = _timed(groups)
    return env.get_template(TEMPLATE).render(
        title=title,
        version=__version__,
        label_set=label_set,
        held_out=held_out,
        k=held_out.identity.k,
        rows=rows,
        groups=groups,
        front=_front(groups),
        several=_several(groups),
        timed=timed,
        ece=ECE,
        figure=_figure(groups, timed) if groups else None,
    )


def print_tables(console: Console, rows: list[Row], groups: list[Group]) -> None:
    """Print the tables; * marks the Pareto front."""
    front = _front(groups)
    headings = [quality.heading for quality in BY_KL]
    columns = (*headings, "params", "size", "gen/s", "state")
    table = number_table("leaderboard", "trial", *columns, caption=f"* on the Pareto front. {ECE}")
    for row in rows:
        star = "* " if row.name in front else "  "
        cells = [quality.text(getattr(row, quality.name)) for quality in BY_KL]
        cells += [size(row.parameters, ""), size(row.bytes, "B"), number(row.generating, 0)]
        table.add_row(star + row.name, *cells, row.status)
    console.print(table)
    if _several(groups):
        caption = "mean ± standard deviation"
        table = number_table("over seeds", "trials", "seeds", *headings, caption=caption)
        for group in groups:
            star = "* " if group.front else "  "
            cells = [
                _spread(getattr(group, quality.name), SPREAD_DECIMALS[quality.name])
                for quality in BY_KL
            ]
            table.add_row(star + group.label, str(len(group.names)), *cells)
        console.print(table)
    for row in rows:
        if row.status != "finished":
            console.print(
                f"{row.status}: {row.name}: {row.note}",
                soft_wrap=True,
                highlight=False,
            )


def _front(groups: list[Group]) -> set[str]:
    return {name for group in groups if group.front for name in group.names}


def _spread(value: Spread, decimals: int) -> str:
    if value.deviation is None:
        return number(value.mean, decimals)
    return f"{number(value.mean, decimals)} ± {number(value.deviation, decimals)}"


def _several(groups: list[Group]) -> bool:
    return any(len(group.names) > 1 for group in groups)


def _timed(groups: list[Group]) -> bool:
    return bool(groups) and all(group.generating for group in groups)


def _figure(groups: list[Group], timed: bool) -> Markup:
    """Draw KL against parameters and, if all were timed, against speed."""
    panels = [("parameters (millions)", [group.parameters / 1e6 for group in groups], 1)]
    if timed:
        panels += [("generating (tokens/s)", [group.generating or 0.0 for group in groups], -1)]
    kl = [group.kl.mean for group in groups]
    bars = [group.kl.deviation or 0.0 for group in groups]
    with new_figure(len(panels), 9.5, 4.2) as (figure, axes):
        for axis, (label, places, better) in zip(axes, panels):
            colors = COLORS * len(groups)
            for group, x, y, bar, color in zip(groups, places, kl, bars, colors):
                fmt, ms = ("*", 13) if group.front else ("o", 6)
                axis.errorbar(
                    x,
                    y,
                    bar or None,
                    color=color,
                    capsize=3,
                    label=one_line(group.label),
                    fmt=fmt,
                    ms=ms,
                )
            line = staircase([(x * better, y) for x, y in zip(places, kl)])
            axis.plot([x * better for x, _ in line], [y for _, y in line], color=QUIET, lw=1)
            axis.set_xlabel(label)
            axis.set_ylabel("held-out KL to teacher (nats per label)")
            axis.grid(alpha=0.2)
        handles = axes[0].get_legend_handles_labels()
        keep_names_plain(
            figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
        )
        return svg(figure, "KL to the teacher against size and speed", "pareto")
