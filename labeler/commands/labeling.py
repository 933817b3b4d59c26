"""Commands that run a teacher: `label`, and what one asks before."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from labeler.console import human_bytes, human_seconds, out
from labeler.labeling.label_config import LabelConfig, PreviewConfig
from schemas import SoftshardsError

if TYPE_CHECKING:
    from labeler.labeling.runs.label_run import RunSummary


def label(
    inputs: list[str],
    *,
    settings: LabelConfig,
    dry_run: bool = False,
    calibrate: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Label a corpus or prompts with a teacher; stop it whenever you like, run it again to go on.

    Writes a label set to --out: one Parquet shard a work unit, each on disk for good before the
    next begins. The same command continues an unfinished set and leaves a finished one alone.

    Example: `labeler label corpus.jsonl --model ./teacher --out ./labels --k 64`

    Parameters
    ----------
    inputs
        Files (.jsonl, .json, .csv, .txt, each also .gz or .zst; .parquet, .arrow), folders of them,
        patterns ('data/*.jsonl'), URLs of any of these (https://, s3://, gs://, hf://, ...), - for
        JSON lines on standard input, Hugging Face datasets on disk, and label sets, whose rows are
        labeled again.
    dry_run
        Print the plan with estimated bytes, memory and time; write nothing, load no teacher.
    calibrate
        With --dry-run: load the teacher all the same, and measure the time on a few rows.
    as_json
        Print the summary as JSON on standard output.
    """
    from labeler.labeling.engines.vllm.vllm_engine import prepare_environment

    prepare_environment()
    from labeler.labeling.runs import label_dry_run, label_run

    if calibrate and not dry_run:
        raise SoftshardsError("--calibrate belongs to --dry-run", hint="give both, or neither")
    if dry_run:
        label_dry_run.print_plan(inputs, settings, calibrate=calibrate, as_json=as_json)
        return
    summary = label_run.label(inputs, settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
    else:
        _print_summary(summary)
    if summary.stopped_by is not None:
        sys.exit(128 + signal.Signals[summary.stopped_by])


def _print_summary(summary: RunSummary) -> None:
    size = f"{human_bytes(summary.bytes)}, {summary.bytes / max(1, summary.labels):.0f} B a label"
    work = f"{summary.units_labeled} units labeled, {summary.units_reused} reused"
    out.print(
        f"{summary.out}: {summary.status}, {summary.rows} rows, {summary.labels} labels ({size}), "
        f"{summary.rejects} rejects; {work}, {human_seconds(summary.seconds)}"
    )
    if summary.stopped_by is not None:
        out.print(f"stopped by {summary.stopped_by}; the same command goes on from there")


def preview(
    inputs: list[str],
    *,
    settings: PreviewConfig,
    rows: int = 3,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Show the first rows as the teacher will see them, with the tokens to be labeled colored.

    Takes the flags of `label`, needs the teacher's tokenizer only, and writes nothing. Where the
    output is no terminal, labeled tokens stand in brackets with their kind.

    Example: `labeler preview chats.jsonl --model ./teacher --spans assistant`

    Parameters
    ----------
    inputs
        Files or folders, as `labeler label` takes them.
    rows
        Rows to show; rejected records count, too.
    as_json
        Print a JSON list with each token and the kind of its label.
    """
    from labeler.labeling.rendering.preview import print_preview

    print_preview(inputs, settings, rows, as_json=as_json)


def bench(
    model: list[str],
    *,
    labels: Path,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    sequences: int = 16,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    dtype: str = "float32",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure how fast vLLM runs models: tokens/s of reading and of generating, same input for all.

    Each model runs in a process of its own. An --out file that already holds the same measurement
    is reused.

    Example: `labeler bench teacher=./teacher student=./student --labels ./labels`

    Parameters
    ----------
    model
        Folders of checkpoints, each as FOLDER or NAME=FOLDER.
    labels
        Folder of a label set, or a view of one, from which the input sequences are taken.
    out_file
        Write the figures to this JSON file, for `trainer report --bench`.
    sequences
        Sequences a measurement.
    prompt_tokens
        Tokens read a sequence.
    new_tokens
        Tokens generated a sequence.
    repeats
        Measurements a model; the best counts.
    dtype
        dtype to run all models in.
    as_json
        Print JSON on standard output.
    """
    from labeler.labeling.bench import bench as benchmark

    workload = benchmark.Workload(
        labels=str(labels),
        sequences=sequences,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        dtype=dtype,
    )
    benchmark.print_bench(model, workload, out_file, as_json=as_json)
