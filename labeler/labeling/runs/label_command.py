"""`labeler label`: its settings, and a call of it from the command line."""

from __future__ import annotations

import dataclasses
import json
import signal
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import RaySettings
from schemas.errors import SoftshardsError

if TYPE_CHECKING:
    from labeler.labeling.runs.label_run import LabelUnits, RunSummary


@Parameter(name="*")
@dataclass(frozen=True)
class LabelCommand:
    """The input, the settings of the label set, and the kind of run."""

    inputs: tuple[str, ...]
    """Files (.jsonl, .ndjson, .json, .csv, .txt, each also .gz, .zst, .bz2 or .xz; .parquet,
    .arrow), folders of them, patterns ('data/*.jsonl'), URLs of any of these (https://, s3://,
    gs://, hf://, ...), - for JSON lines on standard input, Hugging Face datasets on disk, and label
    sets, whose rows are labeled again."""

    _: KW_ONLY

    settings: LabelConfig

    cluster: RaySettings = field(default_factory=RaySettings)

    dry_run: bool = False
    """Print the plan with estimated bytes, memory and time; write nothing, load no teacher."""

    calibrate: bool = False
    """With --dry-run: load the teacher all the same, and measure the time on a few rows."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the summary as JSON on standard output."""

    def __post_init__(self) -> None:
        if self.calibrate and not self.dry_run:
            raise SoftshardsError("--calibrate needs --dry-run", hint="give both, or neither")


def run_label(config: LabelCommand, work: LabelUnits | None = None) -> int:
    """Label the inputs, or print the plan of a dry run, and return the exit code.

    Args:
        config: the command's settings.
        work: labels the units; by default this process.

    Raises:
        SoftshardsError: as `label_run.label`.
    """
    from labeler.labeling.engines.vllm.vllm_environment import prepare_environment

    prepare_environment()
    from labeler.labeling.runs import label_dry_run, label_run
    from labeler.labeling.runs.label_units import label_units

    if config.dry_run:
        label_dry_run.print_plan(
            config.inputs, config.settings, calibrate=config.calibrate, as_json=config.as_json
        )
        return 0
    summary = label_run.label(config.inputs, config.settings, work or label_units)
    if config.as_json:
        print(json.dumps(dataclasses.asdict(summary)))
    else:
        _print_summary(summary)
    return 0 if summary.stopped_by is None else 128 + signal.Signals[summary.stopped_by]


def _print_summary(summary: RunSummary) -> None:
    from labeler.console import human_bytes, human_seconds, out

    per_label = summary.bytes / max(1, summary.labels)
    size = f"{human_bytes(summary.bytes)}, {per_label:.0f} bytes per label"
    if summary.hidden_bytes is not None:
        hidden = summary.hidden_bytes / max(1, summary.labels)
        size += f"; hidden states {human_bytes(summary.hidden_bytes)}, {hidden:.0f}"
    units = f"{summary.units_labeled} units labeled, {summary.units_reused} reused"
    out.print(
        f"{summary.out}: {summary.status}, {summary.rows} rows, {summary.labels} labels ({size}), "
        f"{summary.rejects} rejects; {units}, {human_seconds(summary.seconds)}"
    )
    if summary.stopped_by is not None:
        out.print(f"stopped by {summary.stopped_by}; the same command resumes")
