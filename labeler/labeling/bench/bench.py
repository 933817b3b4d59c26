"""`labeler bench`: how fast models run in vLLM, under one workload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from labeler.console import err
from labeler.labeling.bench.bench_config import BenchConfig
from labeler.labeling.bench.bench_workload import NamedModel, Workload
from labeler.labeling.teacher.locate_teacher import say
from schemas import SoftshardsError
from schemas.bench_results import BenchModel, BenchResults, read_bench_results, write_bench_results
from schemas.fingerprint import weights_digest
from schemas.hub_model import locate_model


def run_bench(config: BenchConfig) -> int:
    """Measure the models, unless `out_file` holds their figures; print and write them; return 0.

    If a single model is new, all are measured: only models that ran in turns are compared.

    Raises:
        SoftshardsError: a folder is not a model, or a measurement failed.
    """
    workload = Workload(
        labels=str(config.labels),
        sequences=config.sequences,
        concurrency=tuple(sorted(set(config.concurrency))),
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        repeats=config.repeats,
        dtype=config.dtype,
        kv_cache_gb=config.kv_cache_gb,
    )
    models = [_named(model) for model in config.model]
    results = _known(config.out_file, workload, models)
    if results is not None:
        err.print(f"{config.out_file}: reusing its figures")
    else:
        from labeler.labeling.bench.bench_turns import measure_in_turns

        measured = measure_in_turns(models, workload)
        engine = {"name": measured[0].engine or "", **workload.facts()}
        results = BenchResults(engine=engine, models=tuple(measured))
    if config.out_file is not None:
        write_bench_results(config.out_file, results)
    if config.as_json:
        print(json.dumps(results.model_dump(mode="json")))
        return 0
    from labeler.labeling.bench.bench_table import print_results

    print_results(results)
    return 0


def _named(model: str) -> NamedModel:
    name, _, path = model.rpartition("=")
    source = locate_model(path, say=say)
    try:
        weights = weights_digest(source.folder)
    except FileNotFoundError as error:
        raise SoftshardsError(f"not a model: {error}", path=source.folder) from error
    name = name or Path(source.name or path).name
    return NamedModel(name=name, path=source.folder, source=str(source), weights=weights)


def _known(
    out_file: Path | None, workload: Workload, models: Sequence[NamedModel]
) -> BenchResults | None:
    """Return the figures that an earlier call measured under the same workload, if it has all."""
    if out_file is None or not out_file.is_file():
        return None
    results = read_bench_results(out_file)
    engine = {name: value for name, value in results.engine.items() if name != "name"}
    by_weights = {model.weights: model for model in results.models}
    if engine != workload.facts() or not all(model.weights in by_weights for model in models):
        return None
    found: list[BenchModel] = [
        by_weights[model.weights].model_copy(update={"name": model.name, "model": model.source})
        for model in models
    ]
    return results.model_copy(update={"models": tuple(found)})
