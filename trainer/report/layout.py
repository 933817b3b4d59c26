"""Parts that the HTML pages of `trainer` share: templates, and figures as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from schemas.errors import SoftshardsError
from trainer.console import number, percent, size, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.typing import RcKeyType

INK = "#010203"
"""Stands for the page's text color in figures; replaced by `currentColor` in the SVG."""
COLORS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#a154c8", "#c8455c", "#7a8a2e")
FIGURE_STYLE: dict[RcKeyType, str | float] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "softshards",
}
"""Settings of matplotlib: text stays text, and the same figure has the same bytes."""


def environment() -> Environment:
    """Return the templates of `trainer`; they may extend `report/page.html.jinja`."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"number": number, "size": size, "percent": percent, "times": times}
    found.filters["signed"] = "{:+.4f}".format
    return found


def check_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        SoftshardsError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise SoftshardsError(
            "matplotlib is not installed", hint="pip install 'softshards[report]'"
        )


@contextmanager
def new_figure(panels: int, width: float, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of the page's style, and its panels side by side. Convert it inside (`svg`).

    Args:
        panels: number of panels.
        width: of the whole figure, in inches; height: likewise.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])


def keep_names_plain(legend: Legend) -> None:
    """Show names as they are: a dollar sign starts no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def svg(figure: Figure) -> Markup:
    """Return a figure as an SVG element in the page's text color."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))
