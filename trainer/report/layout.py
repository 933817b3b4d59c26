"""What the HTML pages and tables of `trainer` share: layout, figures, spelling of numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

INK = "#010203"
"""Stands for the page's text color in figures; replaced by `currentColor` in the SVG."""
COLORS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#a154c8", "#c8455c", "#7a8a2e")
FIGURE_STYLE: Any = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    **{"svg.fonttype": "none", "svg.hashsalt": "softshards", "font.size": 10},
    **{"axes.spines.top": False, "axes.spines.right": False},
}
"""For `matplotlib.rc_context`: text stays text, and the same figure is the same bytes."""
WIDTH = 100
ECE = "ECE: how far the probability of the likeliest token is from how often it is right (15 bins)"


def environment() -> Environment:
    """Templates of this package; they may extend `report/page.html.jinja`."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"number": number, "size": size, "percent": percent, "times": times}
    return found


def svg(figure: Any) -> str:
    """A matplotlib figure as an SVG element in the page's text color."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def table_console() -> Console:
    """Standard output; a pipe has no width, so numbers are not cut off there."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """An empty table: names, which fold where the terminal is narrow, then numbers."""
    made = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # ten columns have to fit a terminal of 80
    )
    made.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        made.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return made


def number(value: float | None, digits: int, *, at_least: bool = False) -> str:
    """With thousands separated; `at_least` marks a lower bound."""
    return "–" if value is None else f"{'≥' if at_least else ''}{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share, in percent."""
    return "–" if value is None else f"{value:.1%}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None else f"{value:.2f}×"


def size(value: float | None, unit: str) -> str:
    """In thousands, millions or billions of a unit."""
    if value is None:
        return "–"
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()
