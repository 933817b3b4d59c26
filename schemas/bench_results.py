"""Results of `labeler bench`: the speed of several models under one workload."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from schemas.atomic import write_atomic
from schemas.errors import SoftshardsError
from schemas.json_values import parse_object
from schemas.manifest import ExtensibleModel

VERSION = 2
"""Version 1 had no turns: medians of reading and generating, measured one model after the other."""
UNSTABLE = 0.2
"""Range of the rounds, as a share of their median, above which a figure is not stable."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Measured(ExtensibleModel):
    """A figure that was measured in several rounds.

    Attributes:
        median: of the rounds.
        spread: (largest - smallest) / median; None where it is not known.
        rounds: one value per round, in the order of the rounds; empty in files of version 1.
    """

    median: Positive
    spread: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    rounds: tuple[Positive, ...] = ()

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Self:
        """Return the figure of some rounds; one round says nothing about its spread."""
        median = statistics.median(rounds)
        spread = (max(rounds) - min(rounds)) / median if len(rounds) > 1 else None
        return cls(median=median, spread=spread, rounds=tuple(rounds))

    @property
    def is_stable(self) -> bool:
        """True if the rounds agree; False also where their spread is not known."""
        return self.spread is not None and self.spread <= UNSTABLE

    def relative_to(self, other: Measured) -> Measured:
        """Return this figure divided by that of another model.

        Where both have the same rounds, which ran in turns, it is divided round by round: what
        slows the machine for a while slows both, and cancels.
        """
        if len(self.rounds) == len(other.rounds) > 0:
            return Measured.of([a / b for a, b in zip(self.rounds, other.rounds)])
        return Measured(median=self.median / other.median)


class Latency(ExtensibleModel):
    """What requests wait for when several arrive at once.

    Attributes:
        concurrency: number of requests.
        first_token_s: seconds from the arrival to a request's first token: the median request.
        last_token_s: seconds to its last token.
        tokens_per_s: tokens generated per second, all requests together, reading included.
    """

    concurrency: int = Field(ge=1)
    first_token_s: Measured
    last_token_s: Measured
    tokens_per_s: Measured


class BenchModel(ExtensibleModel):
    """The speed of one model.

    Attributes:
        name: the name that the user gave it.
        model: path of its folder.
        weights: digest of its weights.
        engine: name and version of the engine that ran it.
        device: the device that it ran on: `cpu` or `cuda`.
        load_seconds: seconds to load the model.
        reading: prompt tokens read per second, until each has its first token.
        generating: tokens generated per second once all prompts are read.
        latencies: by concurrency.
        peak_memory_bytes: largest memory of the engine's process on a CPU, or of the engine on a
            GPU; its cache, which is of one size for all models, included.
        joules_per_token: energy of the device per generated token, reading included; None where
            nothing counts or estimates it.
        energy_source: the counter, or what estimated it.
        energy_is_estimated: no counter measured it.
    """

    name: str
    model: str
    weights: str | None = None
    engine: str | None = None
    device: str | None = None
    load_seconds: float | None = None
    reading: Measured
    generating: Measured
    latencies: tuple[Latency, ...] = ()
    peak_memory_bytes: int | None = None
    joules_per_token: Measured | None = None
    energy_source: str | None = None
    energy_is_estimated: bool = False

    def latency(self, concurrency: int) -> Latency | None:
        """Return the latencies of so many requests; None if they were not measured."""
        return next((one for one in self.latencies if one.concurrency == concurrency), None)


class BenchResults(ExtensibleModel):
    """The file that `labeler bench --out` writes.

    Attributes:
        version: of this file's fields.
        engine: the engine's `name` and the settings of the workload.
        models: the models, in the order of the command line.
    """

    version: int = VERSION
    engine: dict[str, str | int | float] = Field(default_factory=dict)
    models: tuple[BenchModel, ...]

    def find(self, name: str, places: Sequence[Path]) -> BenchModel | None:
        """Return the measurements of a model; None if it was not measured.

        Args:
            name: the model's name, used where no path matches.
            places: folders that the model may have been measured in.
        """
        resolved = {place.resolve() for place in places}
        by_path = [model for model in self.models if Path(model.model).resolve() in resolved]
        by_name = [model for model in self.models if model.name == name]
        return next(iter(by_path or by_name), None)


def write_bench_results(path: Path, results: BenchResults) -> None:
    """Write the results atomically."""
    write_atomic(path, json.dumps(results.model_dump(mode="json"), indent=2) + "\n")


class _FirstModel(ExtensibleModel):
    """A model in a file of version 1."""

    name: str
    model: str
    weights: str | None = None
    engine: str | None = None
    load_seconds: float | None = None
    score_tokens_per_s: float
    score_spread: float | None = None
    generate_tokens_per_s: float
    generate_spread: float | None = None

    def upgraded(self) -> BenchModel:
        return BenchModel(
            name=self.name,
            model=self.model,
            weights=self.weights,
            engine=self.engine,
            load_seconds=self.load_seconds,
            reading=Measured(median=self.score_tokens_per_s, spread=self.score_spread),
            generating=Measured(median=self.generate_tokens_per_s, spread=self.generate_spread),
        )


class _FirstResults(ExtensibleModel):
    """A file of version 1."""

    engine: dict[str, str | int | float] = Field(default_factory=dict)
    models: tuple[_FirstModel, ...]


def read_bench_results(path: Path) -> BenchResults:
    """Read the results; those of version 1 have medians and spreads, but no rounds or latencies.

    Raises:
        SoftshardsError: the file is missing, of another version, or holds something else.
    """
    hint = "run `labeler bench --out`"
    try:
        content = parse_object(path.read_bytes())
        version = content.get("version", 1)
        if version == 1:
            first = _FirstResults.model_validate(content)
            models = tuple(model.upgraded() for model in first.models)
            return BenchResults(version=1, engine=first.engine, models=models)
        if version != VERSION:
            what = f"the results are of version {version}, this softshards reads up to {VERSION}"
            raise SoftshardsError(what, path=path, hint=f"update softshards, or {hint}")
        return BenchResults.model_validate(content)
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        what = "cannot be read as results of `labeler bench`"
        raise SoftshardsError(what, path=path, hint=hint) from error


def speeds(
    results: BenchResults | None, name: str, places: list[Path]
) -> tuple[float | None, float | None]:
    """Return tokens read and tokens generated per second by a model; None if not measured.

    Args:
        results: the measurements, where there are any.
        name: the model's name, used where no path matches.
        places: folders that the model may have been measured in.
    """
    found = results.find(name, places) if results else None
    return (found.reading.median, found.generating.median) if found else (None, None)
