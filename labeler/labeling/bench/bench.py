"""`labeler bench`: tokens/s of several models under one workload, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from labeler.console import err, out
from labeler.labeling.bench.bench_config import BenchConfig
from labeler.labeling.teacher.locate_teacher import say
from schemas import SoftshardsError
from schemas.bench_results import (
    BenchModel,
    BenchResults,
    read_bench_results,
    write_bench_results,
)
from schemas.fingerprint import weights_digest
from schemas.hub_model import ModelSource, locate_model

UNSTABLE = 0.2
"""Range of the repeats, as a share of their median, from which figures are not compared."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of every model: sequences of a label set, read and continued."""

    labels: str
    sequences: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    dtype: str


def run_bench(config: BenchConfig) -> int:
    """Measure the models whose figures `out_file` does not hold yet; print and write all.

    Raises:
        SoftshardsError: a folder is not a model, or its measurement failed.
    """
    out_file = config.out_file
    workload = Workload(
        labels=str(config.labels),
        sequences=config.sequences,
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        repeats=config.repeats,
        dtype=config.dtype,
    )
    named = [_named(model) for model in config.model]
    known = _known(out_file, workload)
    measured: list[BenchModel] = []
    for name, source in named:
        path = source.folder
        try:
            weights = weights_digest(path)
        except FileNotFoundError as error:
            raise SoftshardsError(f"not a model: {error}", path=path) from error
        reused = known.get(weights)
        err.print(f"{name}: " + ("reusing its figures" if reused else "measuring"))
        facts = {"name": name, "model": str(source), "weights": weights}
        measured.append(
            reused.model_copy(update=facts)
            if reused
            else BenchModel.model_validate(_measure(path, workload) | facts)
        )
    engine = {"name": measured[0].engine or "", **asdict(workload)}
    results = BenchResults(engine=engine, models=tuple(measured))
    if out_file is not None:
        write_bench_results(out_file, results)
    if config.as_json:
        print(json.dumps(results.model_dump(mode="json")))
        return 0
    table = Table(box=None)
    for column in ("model", "reading tokens/s", "generating tokens/s", "vs first"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in measured:
        ratio = model.generate_tokens_per_s / measured[0].generate_tokens_per_s
        read = _with_spread(f"{model.score_tokens_per_s:.0f}", model.score_spread)
        generated = _with_spread(f"{model.generate_tokens_per_s:.1f}", model.generate_spread)
        table.add_row(model.name, read, generated, f"{ratio:.2f}x")
    out.print(table)
    spreads = [spread for m in measured for spread in (m.score_spread, m.generate_spread) if spread]
    if max(spreads, default=0.0) > UNSTABLE:
        err.print("not stable: other work on this machine changed the speed between the repeats")
    return 0


def _with_spread(figure: str, spread: float | None) -> str:
    return figure if spread is None else f"{figure} ±{spread / 2:.0%}"


def _named(model: str) -> tuple[str, ModelSource]:
    name, _, path = model.rpartition("=")
    source = locate_model(path, say=say)
    return name or Path(source.name or path).name, source


def _known(out_file: Path | None, workload: Workload) -> dict[str, BenchModel]:
    """Return the figures of an earlier call under the same workload, by the model's weights."""
    if out_file is None or not out_file.is_file():
        return {}
    results = read_bench_results(out_file)
    if {n: v for n, v in results.engine.items() if n != "name"} != asdict(workload):
        return {}
    return {model.weights: model for model in results.models if model.weights is not None}


def _measure(path: Path, workload: Workload) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "labeler.labeling.bench.bench_model",
        str(path),
        json.dumps(asdict(workload)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SoftshardsError(
            f"the measurement failed with exit code {done.returncode}; see the log above",
            path=path,
        )
    figures: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
