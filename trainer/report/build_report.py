"""Compare teacher, baselines and students: one HTML file, and a table on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup
from rich.table import Table

from schemas import Identity, LabelSet, SoftshardsError, __version__, open_label_set
from schemas.atomic import write_atomic
from schemas.bench_results import BenchResults, read_bench_results, speeds
from schemas.ledger import read_ledger
from trainer.console import number, number_table, size, table_console, times
from trainer.evaluate.bootstrap import FEW_DOCUMENTS
from trainer.evaluate.model_differences import COMPARED, Difference, differences
from trainer.evaluate.results import (
    DRAFT,
    ECE,
    QUALITY,
    EvaluationResults,
    MeasuredModel,
    Metrics,
)
from trainer.report.layout import (
    COLORS,
    INK,
    check_matplotlib,
    environment,
    keep_names_plain,
    new_figure,
    svg,
)
from trainer.report.report_config import ReportConfig
from trainer.run_files import FINAL, LOG, RESULT, LogLine, read_lines
from trainer.train.run_record import RunResult

TEMPLATE = "report/report.html.jinja"


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
    measured: MeasuredModel | None = None
    differences: dict[str, Difference] = field(default_factory=dict)  # from the first trained run
    training: RunResult | None = None

    @property
    def kinds(self) -> dict[str, Metrics]:
        """The metrics of each kind of span."""
        return self.measured.kinds if self.measured else {}

    def break_even(self, teacher: Line, label_seconds: float) -> float | None:
        """Return the generated tokens after which labeling and training have saved their time.

        Args:
            teacher: the line to compare with.
            label_seconds: seconds of labeling.

        Returns:
            None if it is not known, or if the model is not faster.
        """
        if not (self.training and self.generating and teacher.generating):
            return None
        saved = 1 / teacher.generating - 1 / self.generating
        return (label_seconds + self.training.seconds) / saved if saved > 0 else None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A label set, and where it came from."""

    path: str
    identity: Identity
    status: str
    facts: dict[str, str]
    rows: int
    labels: int
    bytes_per_label: float | None
    engine_seconds: float | None


def report(config: ReportConfig) -> int:
    """Write the report and print its table; return the exit code.

    Raises:
        SoftshardsError: something it needs was not measured, or cannot be read.
    """
    results = EvaluationResults.open(config.eval)
    bench = read_bench_results(config.bench) if config.bench else None
    runs = [_parse_named(value, "--run") for value in config.run]
    baselines = [_parse_named(value, "--baseline") for value in config.baseline]
    teacher = _teacher_line(results, bench)
    lines = [teacher]
    lines += [_line(n, "baseline", path, results, bench, teacher) for n, path in baselines]
    lines += [_line(n, "trained", path, results, bench, teacher) for n, path in runs]
    lines = _compare_with_first_run(lines)
    label_sets = [_origin(path) for path in config.labels]
    curves = {name: read_lines(path / LOG) for name, path in runs}
    html = (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=config.title,
            version=__version__,
            lines=lines,
            ece=ECE,
            compared=COMPARED,
            few_documents=FEW_DOCUMENTS,
            draft=DRAFT,
            several_kinds=any(len(line.kinds) > 1 for line in lines),
            held_out=results.label_set,
            label_sets=label_sets,
            label_seconds=_sum_known([origin.engine_seconds for origin in label_sets]),
            engine=bench.engine if bench else {},
            figure=_figure(curves) if any(curves.values()) else None,
        )
    )
    write_atomic(config.out, html)
    console = table_console()
    console.print(_table(lines))
    console.print(f"report: {config.out}", soft_wrap=True)
    return 0


def _parse_named(value: str, flag: str) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if not (name and equals and path):
        raise SoftshardsError(f"{flag} {value}: it must be NAME=DIR")
    if not Path(path).is_dir():
        raise SoftshardsError(f"{flag} {name}: there is no such folder", path=path)
    return name, Path(path)


def _teacher_line(results: EvaluationResults, bench: BenchResults | None) -> Line:
    teacher = results.teacher
    measured = [model for model in results.models if model.weights == teacher.weights]
    # The checkpoint of --teacher, or the teacher measured like a model.
    sizes = teacher if teacher.parameters is not None or not measured else measured[0]
    places = [*([teacher.path] if teacher.path else []), *(p for m in measured for p in m.paths)]
    reading, generating = speeds(bench, "teacher", [Path(place) for place in places])
    return Line(
        name="teacher",
        role="teacher",
        path=teacher.path or ", ".join(places[:1]) or f"weights {teacher.weights[:16]}",
        ppl=teacher.ppl,
        at_least=teacher.lower_bound,
        parameters=sizes.parameters,
        non_embedding=sizes.non_embedding,
        bytes=sizes.bytes,
        reading=reading,
        generating=generating,
        speedup=1.0 if generating else None,
    )


def _line(
    name: str,
    role: str,
    path: Path,
    results: EvaluationResults,
    bench: BenchResults | None,
    teacher: Line,
) -> Line:
    model = path / FINAL if (path / FINAL).is_dir() else path
    found = results.find(model)
    reading, generating = speeds(bench, name, [model, path])
    training = None
    if (path / RESULT).is_file():
        training = RunResult.read(path / RESULT, "the result of `trainer train`")
    return Line(
        name=name,
        role=role,
        path=str(path),
        ppl=found.all.ppl,
        kl=found.all.kl,
        agreement=found.all.agreement,
        ece=found.all.ece,
        parameters=found.parameters,
        non_embedding=found.non_embedding,
        bytes=found.bytes,
        reading=reading,
        generating=generating,
        speedup=generating / teacher.generating if generating and teacher.generating else None,
        measured=found,
        training=training,
    )


def _compare_with_first_run(lines: list[Line]) -> list[Line]:
    """Return the lines; those of other models with their differences from the first trained run."""
    first = next((line for line in lines if line.role == "trained"), None)
    if first is None or first.measured is None:
        return lines
    return [
        replace(line, differences=differences(line.measured, first.measured))
        if line.measured and line is not first
        else line
        for line in lines
    ]


def _origin(path: str) -> Origin:
    labels = open_label_set(path, allow_partial=True)
    manifest = labels.manifest
    is_whole = labels.view is None  # a view selects a part of the stored rows
    ledger = read_ledger(labels.path) if is_whole else None
    seconds = [cost.engine_seconds for cost in ledger.engines.values()] if ledger else []
    return Origin(
        path=path,
        identity=manifest.identity,
        status=manifest.status,
        facts=_facts(labels),
        rows=labels.rows,
        labels=labels.labels,
        bytes_per_label=labels.stored_bytes / max(1, labels.labels) if is_whole else None,
        engine_seconds=sum(seconds) if seconds else None,
    )


def _sum_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _facts(labels: LabelSet) -> dict[str, str]:
    """Return the provenance that a reader cares about: teacher, input files, engine and cost."""
    provenance = labels.manifest.provenance
    facts: dict[str, str] = {
        name: str(provenance[name]) for name in ("teacher", "softshards") if name in provenance
    }
    inputs = provenance.get("plan", {}).get("inputs", {})
    if inputs:
        facts["input"] = ", ".join(f"{name} (SHA-256 {d[:12]})" for name, d in inputs.items())
    if (ledger := read_ledger(labels.path)) is not None:
        facts["engine"] = "; ".join(
            f"{name}: {cost.engine_seconds:,.0f} s, {cost.tokens_per_s:,.0f} tokens/s"
            for name, cost in ledger.engines.items()
        )
    return facts


def _figure(curves: dict[str, list[LogLine]]) -> Markup:
    """Draw the training curves: KL to the teacher and cross-entropy by tokens."""
    check_matplotlib()
    panels = (("kl", "KL to teacher (nats per label)"), ("ce", "cross-entropy (nats per label)"))
    with new_figure(len(panels), 9.5, 3.4) as (figure, axes):
        for axis, (part, label) in zip(axes, panels):
            for (name, log), color in zip(curves.items(), COLORS * len(curves)):
                tokens = [line["tokens"] for line in log]
                axis.plot(tokens, [line[part] for line in log], label=name, color=color, lw=1.6)
            axis.set_xlabel("training tokens")
            axis.set_ylabel(label)
            axis.grid(alpha=0.2, color=INK)
            keep_names_plain(axis.legend(frameon=False))
        return svg(figure)


def _table(lines: list[Line]) -> Table:
    headings = [quality.heading for quality in QUALITY]
    columns = (*headings, "params", "size", "read/s", "gen/s", "speed")
    table = number_table("held-out", "model", *columns, caption=ECE)
    for line in lines:
        cells = [
            quality.text(
                getattr(line, quality.name), at_least=line.at_least and quality.name == "ppl"
            )
            for quality in QUALITY
        ]
        cells += [size(line.parameters, ""), size(line.bytes, "B")]
        cells += [number(line.reading, 0), number(line.generating, 0), times(line.speedup)]
        table.add_row(line.name, *cells)
    return table
