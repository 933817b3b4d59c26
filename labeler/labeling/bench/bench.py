"""`labeler bench`: tokens/s of several models under one workload, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from labeler.console import err, out
from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.fingerprint import weights_digest


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The same for every model: sequences of a label set, read and continued."""

    labels: str
    sequences: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    dtype: str


def print_bench(
    models: list[str], workload: Workload, out_file: Path | None, *, as_json: bool
) -> None:
    """Measure the models that `out_file` has no figures of yet; print and write all.

    Raises:
        SoftshardsError: a folder is no model, or its measurement failed.
    """
    named = [_named(model) for model in models]
    known = _known(out_file, workload)
    results = []
    for name, path in named:
        try:
            weights = weights_digest(path)
        except FileNotFoundError as error:
            raise SoftshardsError(f"not a model: {error}", path=path) from error
        reused = known.get(weights)
        err.print(f"{name}: " + ("reusing its figures" if reused else "measuring"))
        figures = reused or _measure(path, workload)
        results.append(figures | {"name": name, "model": str(path), "weights": weights})
    engine = {"name": results[0]["engine"], **asdict(workload)}
    content = {"engine": engine, "models": results}
    if out_file is not None:
        write_atomic(out_file, json.dumps(content, indent=2) + "\n")
    if as_json:
        print(json.dumps(content))
        return
    table = Table(box=None)
    for column in ("model", "reading tokens/s", "generating tokens/s", "against the first"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for result in results:
        ratio = result["generate_tokens_per_s"] / results[0]["generate_tokens_per_s"]
        read, generated = result["score_tokens_per_s"], result["generate_tokens_per_s"]
        table.add_row(result["name"], f"{read:.0f}", f"{generated:.1f}", f"{ratio:.2f}x")
    out.print(table)


def _named(model: str) -> tuple[str, Path]:
    name, _, path = model.rpartition("=")
    return (name or Path(path).name, Path(path))


def _known(out_file: Path | None, workload: Workload) -> dict[str, dict[str, Any]]:
    """Figures of an earlier call under the same workload, by the model's weights."""
    if out_file is None or not out_file.is_file():
        return {}
    content = json.loads(out_file.read_text(encoding="utf-8"))
    if {n: v for n, v in content["engine"].items() if n != "name"} != asdict(workload):
        return {}
    return {figures["weights"]: figures for figures in content["models"]}


def _measure(path: Path, workload: Workload) -> dict[str, Any]:
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
    return json.loads(done.stdout.strip().splitlines()[-1])
