"""The leaderboard for people: a table on the terminal and an HTML page with the Pareto front."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.markup import escape

from schemas import __version__
from trainer.report.layout import (
    COLORS,
    ECE,
    FIGURE_STYLE,
    environment,
    number,
    percent,
    size,
    svg,
    table,
)
from trainer.sweep.leaderboard import Group, Row, Spread

TEMPLATE = "sweep/leaderboard.html.jinja"


def html(
    title: str, label_set: str, rows: list[Row], groups: list[Group], results: dict[str, Any]
) -> str:
    """The page; the same rows give the same bytes."""
    env = environment()
    env.filters["spread"] = _spread
    timed = _timed(groups)
    return env.get_template(TEMPLATE).render(
        title=title,
        version=__version__,
        label_set=label_set,
        held_out=results["label_set"],
        k=results["label_set"]["identity"]["k"],
        rows=rows,
        groups=groups,
        front={name for group in groups if group.front for name in group.names},
        several=_several(groups),
        timed=timed,
        ece=ECE,
        figure=Markup(_figure(groups, timed)) if groups else None,
    )


def show(console: Console, rows: list[Row], groups: list[Group]) -> None:
    """Print the tables; * marks the Pareto front."""
    front = {name for group in groups if group.front for name in group.names}
    columns = ("KL", "ppl", "top-1", "ECE", "params", "size", "gen/s", "state")
    board = table("leaderboard", "trial", *columns, caption=f"* on the Pareto front. {ECE}")
    for row in rows:
        star = "* " if row.name in front else "  "
        cells = [number(row.kl, 4), number(row.ppl, 2), percent(row.agreement), percent(row.ece)]
        cells += [size(row.parameters, ""), size(row.bytes, "B"), number(row.generating, 0)]
        board.add_row(escape(star + row.name), *cells, row.status)
    console.print(board)
    if _several(groups):
        board = table(
            "over seeds",
            *("trials", "seeds", "KL", "ppl", "top-1", "ECE"),
            caption="mean ± standard deviation",
        )
        for group in groups:
            cells = [str(len(group.names)), _spread(group.kl, 4), _spread(group.ppl, 2)]
            star = "* " if group.front else "  "
            cells += [_spread(group.agreement, 3), _spread(group.ece, 3)]
            board.add_row(escape(star + group.label), *cells)
        console.print(board)
    for row in rows:
        if row.status != "finished":
            console.print(
                f"{row.status}: {row.name}: {row.note}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )


def _spread(value: Spread, digits: int) -> str:
    if value.deviation is None:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ± {number(value.deviation, digits)}"


def _several(groups: list[Group]) -> bool:
    return any(len(group.names) > 1 for group in groups)


def _timed(groups: list[Group]) -> bool:
    return bool(groups) and all(group.generating for group in groups)


def _figure(groups: list[Group], timed: bool) -> str:
    """KL against parameters and, where all were timed, against speed, as an SVG element."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("parameters (millions)", [group.parameters / 1e6 for group in groups], 1)]
    if timed:
        panels += [("generating (tokens/s)", [group.generating or 0.0 for group in groups], -1)]
    kl = [group.kl.mean for group in groups]
    bars = [group.kl.deviation or 0.0 for group in groups]
    with mpl.rc_context(FIGURE_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(9.5, 4.2), layout="constrained", squeeze=False
        )
        for axis, (label, places, better) in zip(axes[0], panels):
            colors = COLORS * len(groups)
            for group, x, y, bar, color in zip(groups, places, kl, bars, colors):
                mark = {"fmt": "*", "ms": 13} if group.front else {"fmt": "o", "ms": 6}
                axis.errorbar(x, y, bar or None, color=color, capsize=3, label=group.label, **mark)
            line = _staircase([(x * better, y) for x, y in zip(places, kl)])
            axis.plot([x * better for x, _ in line], [y for _, y in line], color="#8a8f98", lw=1)
            axis.set_xlabel(label)
            axis.set_ylabel("held-out KL to teacher (nats per label)")
            axis.grid(alpha=0.2)
        handles = axes[0][0].get_legend_handles_labels()
        legend = figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name with dollar signs is a name
        drawn = svg(figure)
        plt.close(figure)
    return drawn


def _staircase(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none beats in both coordinates, less being better; by the first one."""
    line: list[tuple[float, float]] = []
    for point in sorted(points):
        if not line or point[1] < line[-1][1]:
            line.append(point)
    return line
