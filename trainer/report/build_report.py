"""Compare teacher, baselines and students: a page, the same as Markdown and JSON, and a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypedDict

from markupsafe import Markup
from rich.table import Table

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.json_values import parse_json
from trainer.console import message_console, number_table, size, table_console, times
from trainer.evaluate.bootstrap import FEW_DOCUMENTS
from trainer.evaluate.model_differences import COMPARED
from trainer.evaluate.results import ACCURACY, ALL_QUALITY, DRAFT, ECE, QUALITY, Bin, Group
from trainer.report.gather_report import gather_report, model_folder, parse_named
from trainer.report.layout import environment, has_matplotlib
from trainer.report.markdown_text import is_ours, sign
from trainer.report.model_card import check_card, write_card
from trainer.report.report_config import ReportConfig
from trainer.report.report_data import MADE_BY, ReportContent, ReportedModel, shown_number
from trainer.report.report_figures import (
    color_of,
    reliability,
    trade_offs,
    training_curves,
)
from trainer.report.shown_text import FILTERS, rate, shown_quality
from trainer.report.task_summary import kept_on_tasks
from trainer.run_files import EVAL_LOG, LOG, read_lines

MOST_TASK_MODELS = 5
DIFFERENCES = tuple(name for name in COMPARED if name != "ppl")
"""The perplexity follows from the cross-entropy, and the page is full."""
SHOWN = (*ALL_QUALITY[:-2], ACCURACY, *ALL_QUALITY[-2:])
PAGE, TEXT = "report/report.html.jinja", "report/report.md.jinja"


class Figures(TypedDict):
    """The figures of the page; None where there is nothing to draw, or no matplotlib."""

    trade_offs: Markup | None
    task_trade_offs: Markup | None
    reliability: Markup | None
    training: Markup | None


def report(config: ReportConfig) -> int:
    """Write the report and print its table; return the exit code.

    Raises:
        SoftshardsError: something it needs was not measured, or cannot be read, or a file is in the
            way.
    """
    page, text, data = _outputs(config)
    content, teacher_bins = gather_report(config)
    runs = [parse_named(value, "--run") for value in config.run]
    cards = [model_folder(path) for _, path in runs] if config.model_card else []
    for folder in cards:
        check_card(folder)
    console = message_console()
    if not has_matplotlib():
        console.print(
            "warning: the report has no figures: matplotlib is not installed (pip install "
            "'softshards[report]')"
        )
    values = _values(config, content, _figures(content, teacher_bins, dict(runs)))
    env = environment()
    env.filters |= FILTERS
    write_atomic(page, env.get_template(PAGE).render(values))
    write_atomic(text, sign(env.get_template(TEXT).render(values)))
    write_atomic(data, content.to_json())
    for (name, _), folder in zip(runs, cards):
        write_card(folder, name, content)
    if config.json:
        sys.stdout.write(content.to_json())
    else:
        table_console().print(_table(content))
        if content.verdict is not None:
            table_console().print(_verdict_lines(content), soft_wrap=True)
    for path in (page, text, data, *(folder / "README.md" for folder in cards)):
        console.print(f"report: {path}", soft_wrap=True)
    return 0


def _outputs(config: ReportConfig) -> tuple[Path, Path, Path]:
    """Return the paths of the page, its Markdown and its JSON.

    Raises:
        SoftshardsError: one of them is read by this command, or is a file of someone else.
    """
    out = config.out
    stem = out.with_suffix("") if out.suffix.lower() in (".html", ".htm") else out
    text, data = (stem.with_name(stem.name + suffix) for suffix in (".md", ".json"))
    inputs = {path.resolve() for path in (config.eval, config.bench) if path is not None}
    for path in (out, text, data):
        if path.resolve() in inputs:
            raise SoftshardsError(
                "the report would overwrite a file that it reads",
                path=path,
                hint="give another --out: Markdown and JSON are written beside the page",
            )
    if not (is_ours(text) and _is_our_json(data)):
        raise SoftshardsError(
            "in the way is a file that `trainer report` did not write",
            path=data if is_ours(text) else text,
            hint="give another --out: Markdown and JSON are written beside the page",
        )
    return out, text, data


def _is_our_json(path: Path) -> bool:
    """Return True if a report may be written here: nothing is there, or a report."""
    if not path.exists():
        return True
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def _values(config: ReportConfig, content: ReportContent, figures: Figures) -> dict[str, object]:
    """Return what the templates show."""
    models = content.models
    return {
        "content": content,
        "verdict": content.verdict,
        "judged": content.judged,
        "teacher": content.teacher,
        "models": content.models,
        "held_out": content.held_out,
        "figures": figures,
        "colors": color_of(content.models, content.judged),
        "compared": COMPARED,
        "compared_names": [n for n in DIFFERENCES if any(n in m.differences for m in models)],
        "qualities": [q for q in SHOWN if any(m.estimate(q.name) for m in models)],
        "dimensions": _dimensions(content.judged),
        "task_models": _task_models(content),
        "few_documents": FEW_DOCUMENTS,
        "draft": DRAFT,
        "ece": ECE,
        "keep": config.keep,
        "title": content.title,
        "version": content.softshards,
    }


def _dimensions(judged: ReportedModel | None) -> list[tuple[str, list[Group]]]:
    """Return the dimensions that divide the held-out set, with their groups."""
    by = judged.measured.by if judged and judged.measured else {}
    return [(name, groups) for name, groups in by.items() if len(groups) > 1]


def _task_models(content: ReportContent) -> list[ReportedModel]:
    """Return the models whose tasks are shown, the judged student first: as many as fit a page."""
    control = content.verdict.control if content.verdict else None
    with_tasks = [m for m in content.models if any(m.name in row.models for row in content.tasks)]
    first = [m for m in with_tasks if m is content.judged]
    second = [m for m in with_tasks if m.name == control]
    rest = [m for m in with_tasks if m not in first + second]
    return (first + second + rest)[:MOST_TASK_MODELS]


def _figures(content: ReportContent, teacher_bins: list[Bin], runs: dict[str, Path]) -> Figures:
    if not has_matplotlib():
        return Figures(trade_offs=None, task_trade_offs=None, reliability=None, training=None)
    judged = content.judged
    colors = color_of(content.models, judged)
    order = sorted(runs, key=lambda name: judged is None or name != judged.name)
    control = content.verdict.control if content.verdict else None
    shown = [m for m in content.models if m.measured and m.name == control]
    shown += [judged] if judged is not None else []
    on_tasks = {m.name: kept_on_tasks(content.tasks, m.name) for m in content.models}
    return Figures(
        trade_offs=trade_offs(
            content.models,
            judged,
            content.currency,
            quality={m.name: m.estimate("agreement") for m in content.models},
            label="same next token as the teacher",
            title="Agreement with the teacher against size and speed",
            name="trade",
        ),
        task_trade_offs=trade_offs(
            content.models,
            judged,
            content.currency,
            quality={name: kept[0] for name, kept in on_tasks.items() if kept},
            label="kept of the teacher's tasks",
            title="Share kept of the teacher's results on tasks against size and speed",
            name="task-trade",
        ),
        reliability=reliability(
            teacher_bins, [(m.name, m.measured.calibration) for m in shown if m.measured], colors
        ),
        training=training_curves(
            {name: read_lines(runs[name] / LOG) for name in order},
            {name: read_lines(runs[name] / EVAL_LOG) for name in order},
            colors,
        ),
    )


def _verdict_lines(content: ReportContent) -> str:
    verdict = content.verdict
    assert verdict is not None
    return f"{verdict.summary}\nship it? {verdict.ship}: {verdict.reason}"


def _table(content: ReportContent) -> Table:
    headings = [quality.heading for quality in QUALITY]
    columns = (*headings, "params", "size", "read/s", "gen/s", "speed")
    table = number_table("held-out", "model", *columns, caption=ECE)
    for model in content.models:
        table.add_row(model.name, *_cells(model))
    return table


def _cells(model: ReportedModel) -> list[str]:
    others = QUALITY[1:]
    cells = [shown_number(model.ppl, 2, at_least=model.at_least)]
    cells += [shown_quality(getattr(model.metrics, q.name, None), q) for q in others]
    cells += [size(model.parameters, ""), size(model.bytes, "B")]
    return [
        *cells,
        rate(model.reading),
        rate(model.generating),
        times(model.speedup),
    ]
