"""Parts that the HTML pages of `trainer` share: templates, and figures as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from schemas.errors import SoftshardsError
from schemas.printable import one_line
from trainer.console import number, percent, size, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.typing import RcKeyType

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK = "#010203"
"""Stands for the page's text color in figures; replaced by `currentColor` in the SVG."""
QUIET = "#010204"
"""Stands for the color of what is not in the foreground: `var(--quiet)`."""
COLORS = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
"""Stand for the colors of series: `var(--series-1)` and so on, light or dark with the page."""
PAGE_COLORS = {INK: "currentColor", QUIET: "var(--quiet)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(COLORS, 1)
}
FIGURE_STYLE: dict[RcKeyType, str | float] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # its widths are planned with; the page's font is shown
    "svg.fonttype": "none",
    "svg.hashsalt": "softshards",
}
"""Settings of matplotlib: text stays text, and the same figure has the same bytes."""


def environment() -> Environment:
    """Return the templates of `trainer`; they may extend `report/page.html.jinja`."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "size": size, "percent": percent, "times": times}
    return found


def has_matplotlib() -> bool:
    """Check whether figures can be drawn."""
    return find_spec("matplotlib") is not None


def check_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        SoftshardsError: matplotlib is not installed.
    """
    if not has_matplotlib():
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


def short_name(name: str, length: int) -> str:
    """Return a name that fits a figure; of a longer one, its beginning and end."""
    name = one_line(name)
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def log_ticks(axis: Axes) -> None:
    """Write the ticks of a logarithmic x axis as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


def staircase(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates (less is better), by the first."""
    line: list[tuple[float, float]] = []
    for point in sorted(points):
        if not line or point[1] < line[-1][1]:
            line.append(point)
    return line


def svg(figure: Figure, title: str, name: str) -> Markup:
    """Return a figure as an SVG element in the page's colors and font.

    Args:
        figure: the figure.
        title: read out in place of the picture.
        name: begins its ids, which must be unique on a page.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():  # not the text: names are shown as they are
        for key, value in element.attrib.items():
            element.set(key, _for_page(key.rpartition("}")[2], value, name))
    root.attrib |= {"role": "img", "aria-label": title}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _for_page(key: str, value: str, name: str) -> str:
    """Return an attribute of an SVG with the page's colors and font, and unique ids."""
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"(url\(#|^#)", rf"\g<1>{name}-", value) if "#" in value else value
    value = re.sub(r"(font: [^;]*?|font-family: )'DejaVu Sans'[^;]*", r"\1inherit", value)
    for placeholder, color in PAGE_COLORS.items():
        value = value.replace(placeholder, color)
    return value
