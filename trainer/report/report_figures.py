"""The figures of a report: trade-offs, calibration and training. They need matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from trainer.evaluate.results import Bin
from trainer.report.layout import (
    COLORS,
    INK,
    QUIET,
    log_ticks,
    new_figure,
    short_name,
    staircase,
    svg,
)
from trainer.report.report_data import Estimate, ReportedModel
from trainer.run_files import LogLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
MOST_CURVES = 6
"""Runs whose curves are drawn: more are not told apart."""
MOST_POINTS = 300
"""Points of a curve: a longer log is averaged."""
TEACHER = "teacher"
HEIGHT = 195.0
"""Height of a panel of trade-offs in points, about."""
GAP = 12 / HEIGHT
"""Vertical distance of names, as a share of a panel's height."""


def color_of(models: Sequence[ReportedModel], judged: ReportedModel | None) -> dict[str, str]:
    """Return the color of each model by name: the judged student has the first.

    Of many models, only that one has a color, and the runs on tokens alone.
    """
    rest = [model for model in models if model is not judged and model.role != "teacher"]
    if len(rest) >= len(COLORS):
        rest = [model for model in rest if model.tokens_only]
    names = [model.name for model in ([judged] if judged else []) + rest]
    return dict(zip(names, COLORS)) | {models[0].name: INK}


def trade_offs(
    models: list[ReportedModel],
    judged: ReportedModel | None,
    currency: str | None,
    *,
    quality: Mapping[str, Estimate | None],
    label: str,
    title: str,
    name: str,
) -> Markup | None:
    """Draw a quality against size, speed and cost; None if nothing is known.

    Args:
        models: all models, the teacher first.
        judged: the student of the verdict.
        currency: of the costs.
        quality: a share for each student that has it, by name.
        label: of the quality, on its axis.
        title: as of `svg`; name: likewise.
    """
    measures: list[tuple[str, Callable[[ReportedModel], float | None], int]] = [
        ("parameters (millions)", lambda m: m.parameters and m.parameters / 1e6, 1),
        ("on disk (MB)", lambda m: m.bytes and m.bytes / 1e6, 1),
        ("generating (tokens/s)", lambda m: m.generating, -1),
        (f"{currency} per million tokens", lambda m: m.cost, 1),
    ]
    if any(m.cost for m in models):  # four panels are too narrow
        measures = [measures[0], *measures[2:]]
    panels = []
    for measure, value, better in measures:
        found = {m.name: x for m in models if (x := value(m)) and math.isfinite(x)}
        if len([m for m in models if m.name in found and m.role != "teacher"]) > 0:
            panels.append((measure, found, better))
    known = {n: share for n, share in quality.items() if share and math.isfinite(share.value)}
    if not panels or not known:
        return None
    colors = color_of(models, judged)
    with new_figure(len(panels), 10.4, 3.5) as (figure, axes):
        for axis, (measure, places, better) in zip(axes, panels):
            _trade_off(axis, known, places, better, colors, judged)
            axis.set_xlabel(measure)
        axes[0].set_ylabel(f"{label} (%)")
        return svg(figure, title, name)


def _trade_off(
    axis: Axes,
    quality: Mapping[str, Estimate],
    places: dict[str, float],
    better: int,
    colors: dict[str, str],
    judged: ReportedModel | None,
) -> None:
    points = {n: (places[n], 100 * share.value) for n, share in quality.items() if n in places}
    front = [(x * better, -y) for x, y in staircase([(x * better, -y) for x, y in points.values()])]
    axis.plot(*zip(*front), color=QUIET, lw=1, zorder=1)
    named: list[tuple[str, float, float]] = []
    for name, (x, y) in points.items():
        color = colors.get(name, QUIET)
        is_judged = judged is not None and name == judged.name
        ends = [100 * end for end in (quality[name].low, quality[name].high) if end is not None]
        if len(ends) == 2 and all(map(math.isfinite, ends)):
            axis.plot([x, x], ends, color=color, lw=1, alpha=0.5, zorder=2)
        axis.plot(x, y, "o", ms=7.5 if is_judged else 5.5, color=color, zorder=3)
        if (x, y) in front or is_judged or len(points) <= len(COLORS):
            named.append((name, x, y))
    xs = list(places.values())
    if min(xs) > 0 and max(xs) / min(xs) > 8:
        axis.set_xscale("log")
        log_ticks(axis)
    if TEACHER in places:
        axis.axvline(places[TEACHER], color=QUIET, lw=1, ls=(0, (2, 3)), zorder=0)
    axis.margins(x=0.25, y=0.15)
    axis.grid(alpha=0.12, color=INK)
    axis.autoscale_view()
    if TEACHER in places:
        _write(axis, TEACHER, (places[TEACHER], axis.get_ylim()[1]), (4, -7))
    _name_points(axis, named)


def _name_points(axis: Axes, named: list[tuple[str, float, float]]) -> None:
    """Write names beside their points, apart where they would overlap, with a line to the point."""
    low, high = axis.get_ylim()
    for (name, x, y), place in zip(named, spread([y for _, _, y in named], GAP * (high - low))):
        side = 1 if _share(axis, x) < 0.6 else -1
        up = (place - y) / (high - low) * HEIGHT
        _write(axis, name, (x, y), (9 * side, up), to_point=abs(up) > 2)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return places at least `gap` apart, in the same order, each near its value."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    groups: list[list[int]] = []

    def places(group: list[int]) -> list[float]:
        middle = sum(values[at] for at in group) / len(group)
        return [middle + gap * (number - (len(group) - 1) / 2) for number in range(len(group))]

    for at in order:
        groups.append([at])
        while len(groups) > 1 and places(groups[-2])[-1] + gap > places(groups[-1])[0]:
            last = groups.pop()
            groups[-1] += last
    found = dict(pair for group in groups for pair in zip(group, places(group)))
    return [found[at] for at in range(len(values))]


def _write(
    axis: Axes,
    name: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    *,
    to_point: bool = False,
) -> None:
    """Write a name beside a point; the offset is in points."""
    line = {"arrowstyle": "-", "color": QUIET, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
    text = axis.annotate(
        short_name(name, 18),
        point,
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        va="center",
        fontsize=9,
        arrowprops=line if to_point else None,
    )
    text.set_parse_math(False)
    text.set_in_layout(False)  # a long name must not shrink the panel


def _share(axis: Axes, x: float) -> float:
    """Return where x lies between the ends of the axis, from 0 to 1."""
    left, right = axis.get_xlim()
    if axis.get_xscale() == "log":
        x, left, right = math.log(x), math.log(left), math.log(right)
    return (x - left) / (right - left) if right > left else 0.5


def reliability(
    teacher: list[Bin], students: list[tuple[str, list[Bin]]], colors: dict[str, str]
) -> Markup | None:
    """Draw how often the top token is right against its probability; None without bins.

    Args:
        teacher: the teacher's bins.
        students: name and bins of each student to draw.
        colors: by name of the student.
    """
    if not any(bins for _, bins in students):
        return None
    with new_figure(1, 4.9, 4.4) as (figure, (axis,)):
        axis.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=(0, (4, 3)))
        curves = [("teacher", teacher, INK)] if teacher else []
        curves += [(name, bins, colors.get(name, QUIET)) for name, bins in students if bins]
        for name, bins, color in curves:
            known = [b for b in bins if b.confidence is not None and b.accuracy is not None]
            xs, ys = [b.confidence or 0.0 for b in known], [b.accuracy or 0.0 for b in known]
            axis.plot(xs, ys, marker="o", ms=3.5, lw=1.4, color=color, label=short_name(name, 24))
        for _, bins, color in curves[-1:]:
            for b in bins:
                if b.confidence is not None and b.interval is not None:
                    axis.plot([b.confidence] * 2, b.interval, color=color, lw=1, alpha=0.55)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_xlabel("probability of the top token")
        axis.set_ylabel("share where it is the actual token")
        axis.grid(alpha=0.15, color=INK)
        _legend(axis)
        return svg(figure, "Reliability diagram", "reliability")


def training_curves(
    curves: dict[str, list[LogLine]],
    held_out: dict[str, list[LogLine]],
    colors: dict[str, str],
) -> Markup | None:
    """Draw KL to the teacher and cross-entropy by training tokens; None without a log.

    Args:
        curves: log lines by name of the run.
        held_out: likewise, held-out measurements: drawn as dots with the step's tokens.
        colors: by name.
    """
    names = [name for name, log in curves.items() if log][:MOST_CURVES]
    if not names:
        return None
    panels = (("kl", "KL to teacher (nats per label)"), ("ce", "cross-entropy (nats per label)"))
    with new_figure(len(panels), 10.4, 3.5) as (figure, axes):
        for axis, (part, label) in zip(axes, panels):
            for name in names:
                color = colors.get(name, QUIET)
                line = _averaged([(_at(x, "tokens"), _at(x, part)) for x in curves[name]])
                marker = "o" if len(line) < 25 else ""
                axis.plot(
                    *zip(*line),
                    marker=marker,
                    ms=3,
                    color=color,
                    lw=1.4,
                    label=short_name(name, 24),
                )
                tokens = {x.get("step"): _at(x, "tokens") for x in curves[name]}
                dots = [
                    (tokens.get(x.get("step"), math.nan), _at(x, part))
                    for x in held_out.get(name, [])
                ]
                if dots:
                    axis.plot(*zip(*dots), "D", ms=4, mfc="none", mec=color)
            axis.set_xlabel("training tokens")
            axis.set_ylabel(label)
            axis.grid(alpha=0.15, color=INK)
            axis.margins(x=0.03)
        _legend(axes[-1])
        return svg(figure, "Training curves", "training")


def _at(line: LogLine, name: str) -> float:
    value = line.get(name, math.nan)
    return value if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _averaged(points: Points) -> Points:
    """Return at most MOST_POINTS points: means of neighbors."""
    width = math.ceil(len(points) / MOST_POINTS)
    found = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        known = [y for _, y in part if not math.isnan(y)]
        y = sum(known) / len(known) if known else math.nan
        found.append((sum(x for x, _ in part) / len(part), y))
    return found


def _legend(axis: Axes) -> None:
    for text in axis.legend(frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
