"""Teacher, baselines and students side by side: one HTML file, and a table on the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.atomic import write_atomic
from trainer.evaluate.evaluate_config import ReportConfig
from trainer.evaluate.results import measured, read_results, speeds
from trainer.report.layout import (
    COLORS,
    ECE,
    FIGURE_STYLE,
    INK,
    environment,
    number,
    percent,
    size,
    svg,
    table,
    table_console,
    times,
)
from trainer.train.run_record import FINAL, RESULT

TEMPLATE = "report/report.html.jinja"
LEDGER = "ledger.json"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model of the table; None where something was not measured."""

    name: str
    role: str
    path: str
    ppl: float | None = None
    at_least: bool = False  # ppl is a lower bound
    kl: float | None = None
    agreement: float | None = None
    ece: float | None = None
    parameters: int | None = None
    non_embedding: int | None = None
    bytes: int | None = None
    reading: float | None = None  # tokens/s
    generating: float | None = None  # tokens/s
    speedup: float | None = None
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def report(config: ReportConfig) -> int:
    """Write the report and print its table; return the exit code.

    Raises:
        SoftshardsError: something it needs was not measured, or cannot be read.
    """
    results = read_results(config.eval, "results of `trainer evaluate`", ("teacher", "models"))
    bench = (
        read_results(config.bench, "results of `labeler bench`", ("models",))
        if config.bench
        else None
    )
    runs = [_named(value, "--run") for value in config.run]
    baselines = [_named(value, "--baseline") for value in config.baseline]
    teacher = _teacher_line(results, bench)
    lines = [teacher]
    lines += [_line(n, "baseline", path, results, bench, teacher) for n, path in baselines]
    lines += [_line(n, "trained", path, results, bench, teacher) for n, path in runs]
    curves = {name: _log(path) for name, path in runs}
    html = (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=config.title,
            version=__version__,
            lines=lines,
            ece=ECE,
            several_kinds=any(len(line.kinds) > 1 for line in lines),
            held_out=results["label_set"],
            label_sets=[_origin(path) for path in config.labels],
            engine=(bench or {}).get("engine", {}),
            figure=Markup(_figure(curves)) if any(curves.values()) else None,
        )
    )
    write_atomic(config.out, html)
    console = table_console()
    console.print(_table(lines))
    console.print(f"report: {config.out}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _named(value: str, flag: str) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if not (name and equals and path):
        raise SoftshardsError(f"{flag} {value}: it must be NAME=DIR")
    if not Path(path).is_dir():
        raise SoftshardsError(f"{flag} {name}: there is no such folder", path=path)
    return name, Path(path)


def _teacher_line(results: dict[str, Any], bench: dict[str, Any] | None) -> Line:
    teacher = results["teacher"]
    path = teacher.get("path", "")
    own = [m for m in results["models"] if m["weights"] == teacher["weights"]]
    size = teacher if "parameters" in teacher else (own[0] if own else {})
    places = [*([path] if path else []), *(p for m in own for p in m["paths"])]
    reading, generating = speeds(bench, "teacher", [Path(p) for p in places])
    return Line(
        name="teacher",
        role="teacher",
        path=path or ", ".join(places[:1]) or f"weights {teacher['weights'][:16]}",
        ppl=teacher["ppl"],
        at_least=teacher.get("lower_bound", False),
        parameters=size.get("parameters"),
        non_embedding=size.get("non_embedding"),
        bytes=size.get("bytes"),
        reading=reading,
        generating=generating,
        speedup=1.0 if generating else None,
    )


def _line(
    name: str,
    role: str,
    path: Path,
    results: dict[str, Any],
    bench: dict[str, Any] | None,
    teacher: Line,
) -> Line:
    model = path / FINAL if (path / FINAL).is_dir() else path
    found = measured(model, results)
    reading, generating = speeds(bench, name, [model, path])
    training = None
    if (path / RESULT).is_file():
        training = read_results(path / RESULT, "the result of `trainer train`", ("steps", "config"))
    return Line(
        name=name,
        role=role,
        path=str(path),
        ppl=found["all"]["ppl"],
        kl=found["all"]["kl"],
        agreement=found["all"]["agreement"],
        ece=found["all"]["ece"],
        parameters=found["parameters"],
        non_embedding=found["non_embedding"],
        bytes=found["bytes"],
        reading=reading,
        generating=generating,
        speedup=generating / teacher.generating if generating and teacher.generating else None,
        kinds=found["kinds"],
        training=training,
    )


def _log(out: Path) -> list[dict[str, Any]]:
    path = out / "log.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _origin(path: str) -> dict[str, Any]:
    """Where a label set came from."""
    labels = open_label_set(path, allow_partial=True)
    manifest = labels.manifest
    whole = labels.view is None  # a view's rows are a part of what is stored
    return {
        "path": path,
        "identity": manifest.identity.model_dump(mode="json"),
        "status": manifest.status,
        "facts": _facts(labels),
        "rows": labels.rows,
        "labels": labels.labels,
        "bytes_per_label": labels.stored_bytes / max(1, labels.labels) if whole else None,
    }


def _facts(labels: LabelSet) -> dict[str, str]:
    """Provenance that a reader cares about, as text: teacher, input files, engine and cost."""
    provenance = labels.manifest.provenance
    facts: dict[str, str] = {
        name: str(provenance[name]) for name in ("teacher", "softshards") if name in provenance
    }
    inputs = provenance.get("plan", {}).get("inputs", {})
    if inputs:
        facts["input"] = ", ".join(f"{name} (SHA-256 {d[:12]})" for name, d in inputs.items())
    if (labels.path / LEDGER).is_file():
        engines = read_results(labels.path / LEDGER, "a label set's ledger", ("engines",))[
            "engines"
        ]
        facts["engine"] = "; ".join(
            f"{name}: {cost['engine_seconds']:,.0f} s, {cost['tokens_per_s']:,.0f} tokens/s"
            for name, cost in engines.items()
        )
    return facts


def _figure(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Training curves as an SVG element: KL to the teacher and cross-entropy by tokens seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(FIGURE_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
        panels = (
            ("kl", "KL to teacher (nats per label)"),
            ("ce", "cross-entropy (nats per label)"),
        )
        for axis, (part, label) in zip(axes, panels):
            for (name, log), color in zip(curves.items(), COLORS * len(curves)):
                tokens = [line["tokens"] for line in log]
                axis.plot(tokens, [line[part] for line in log], label=name, color=color, lw=1.6)
            axis.set_xlabel("training tokens")
            axis.set_ylabel(label)
            axis.grid(alpha=0.2, color=INK)
            legend = axis.legend(frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)  # a name with dollar signs is a name
        text = svg(figure)
        plt.close(figure)
    return text


def _table(lines: list[Line]) -> Table:
    columns = ("ppl", "KL", "top-1", "ECE", "params", "size", "read/s", "gen/s", "speed")
    found = table("held-out", "model", *columns, caption=ECE)
    for line in lines:
        cells = [number(line.ppl, 2, at_least=line.at_least), number(line.kl, 4)]
        cells += [percent(line.agreement), percent(line.ece)]
        cells += [size(line.parameters, ""), size(line.bytes, "B")]
        cells += [number(line.reading, 0), number(line.generating, 0), times(line.speedup)]
        found.add_row(escape(line.name), *cells)
    return found
