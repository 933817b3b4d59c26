"""Results of `labeler bench`: the speed of several models under one workload."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from schemas.atomic import write_atomic
from schemas.errors import SoftshardsError
from schemas.manifest import ExtensibleModel


class BenchModel(ExtensibleModel):
    """The speed of one model.

    Attributes:
        engine: name and version of the engine that ran it.
        load_seconds: seconds to load the model.
        score_tokens_per_s: prompt tokens read per second, until each has its first token.
        score_spread: (largest - smallest) / median of the repeats.
        generate_tokens_per_s: tokens generated per second once all prompts are read.
        generate_spread: as `score_spread`.
        name: the name that the user gave it.
        model: path of its folder.
        weights: digest of its weights.
    """

    engine: str | None = None
    load_seconds: float | None = None
    score_tokens_per_s: float = Field(gt=0)
    score_spread: float | None = None
    generate_tokens_per_s: float = Field(gt=0)
    generate_spread: float | None = None
    name: str
    model: str
    weights: str | None = None


class BenchResults(ExtensibleModel):
    """The file that `labeler bench --out` writes.

    Attributes:
        engine: the engine's `name` and the settings of the workload.
        models: the models, in the order of the command line.
    """

    engine: dict[str, str | int | float] = Field(default_factory=dict)
    models: tuple[BenchModel, ...]


def write_bench_results(path: Path, results: BenchResults) -> None:
    """Write the results atomically."""
    write_atomic(path, json.dumps(results.model_dump(mode="json"), indent=2) + "\n")


def read_bench_results(path: Path) -> BenchResults:
    """Read the results.

    Raises:
        SoftshardsError: the file is missing or holds something else.
    """
    try:
        return BenchResults.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = "cannot be read as results of `labeler bench`"
        raise SoftshardsError(what, path=path, hint="run `labeler bench --out`") from error


def speeds(
    results: BenchResults | None, name: str, places: list[Path]
) -> tuple[float | None, float | None]:
    """Return tokens read and tokens generated per second by a model; None if not measured.

    Args:
        results: the measurements, where there are any.
        name: the model's name, used where no path matches.
        places: folders that the model may have been measured in.
    """
    models = results.models if results else ()
    resolved = {place.resolve() for place in places}
    by_path = [model for model in models if Path(model.model).resolve() in resolved]
    for found in by_path or [model for model in models if model.name == name]:
        return found.score_tokens_per_s, found.generate_tokens_per_s
    return None, None
