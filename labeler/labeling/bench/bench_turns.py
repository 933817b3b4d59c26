"""Models in turns: A B C A B C. What slows the machine for a while slows all of them alike.

Each engine lives in a process of its own, and waits without work while others are measured. All are
kept in memory where they fit. Where they do not, each is loaded again for each of its turns: the
order of the rounds matters more than the time that loading takes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from labeler.console import err
from labeler.labeling.bench.bench_workload import (
    Loaded,
    NamedModel,
    Round,
    Wave,
    Workload,
    read_prompts,
)
from labeler.labeling.planning.engine_memory import checkpoint_size, device_memory
from labeler.labeling.teacher.teacher import open_config
from labeler.labeling.teacher.teacher_config import model_context
from schemas import SoftshardsError
from schemas.bench_results import BenchModel, Latency, Measured

GIB = 1 << 30
PROCESS_BYTES = 2 * GIB
"""Memory of an engine's process beside weights and cache: libraries, activations, context."""
GRACE_SECONDS = 10.0
"""Time to finish what it does and to end."""
SHARE_USED = 0.8
"""Share of the free memory that engines may take together."""


def measure_in_turns(models: Sequence[NamedModel], workload: Workload) -> list[BenchModel]:
    """Measure models round by round, and return their figures in the same order.

    Raises:
        SoftshardsError: the label set has no prompts, or a measurement failed; what the engine said
            stands on standard error.
    """
    highest = max(max(prompt) for prompt in read_prompts(workload))
    for model in models:  # a mistake in the workload does not wait for an engine
        require_fit(model.path, workload, highest)
    together = fit_together(models, workload)
    if not together:
        err.print("the models do not fit in memory together: each is loaded again for each round")
    found: list[list[Round]] = [[] for _ in models]
    loaded: list[Loaded] = []
    with ExitStack() as running:
        engines = [EngineProcess(model.path, workload) for model in models]
        for number in range(workload.repeats):
            for model, engine, rounds in zip(models, engines, found):
                err.print(f"round {number + 1} of {workload.repeats}: {model.name}")
                if not engine.is_running:
                    running.enter_context(engine)
                rounds.append(engine.measure())
                if number == 0:
                    loaded.append(engine.loaded)
                if not together:
                    engine.close()
    return [
        summarize_rounds(model, facts, rounds, workload)
        for model, facts, rounds in zip(models, loaded, found)
    ]


def require_fit(model: Path, workload: Workload, highest: int) -> None:
    """Refuse a model that cannot read the prompts, or whose context ends before their answers.

    Args:
        model: its folder.
        workload: the sequences.
        highest: largest token id of the prompts.

    Raises:
        SoftshardsError: it cannot; says which workload fits.
    """
    config = open_config(model)
    context = model_context(config)
    if context is not None and workload.length > context:
        new = max(2, context * workload.new_tokens // workload.length)
        raise SoftshardsError(
            f"{workload.prompt_tokens} tokens read and {workload.new_tokens} generated are more "
            f"than the model's context of {context} tokens",
            path=model,
            hint=f"--prompt-tokens {max(1, context - new)} --new-tokens {new} fit",
        )
    ids = config.get_text_config().vocab_size
    if highest >= ids:
        raise SoftshardsError(
            f"the label set has token {highest}, and the model knows {ids} ids",
            path=model,
            hint="take --labels that were made with the model's own tokenizer",
        )


def fit_together(models: Sequence[NamedModel], workload: Workload) -> bool:
    """Estimate whether the engines of all models fit in the memory that is free now."""
    free, _ = device_memory()
    need = sum(
        checkpoint_size(model.path, workload.dtype).bytes
        + workload.kv_cache_gb * GIB
        + PROCESS_BYTES
        for model in models
    )
    return need <= SHARE_USED * free


class EngineProcess:
    """A process that holds one model; `with` ends it.

    Args:
        model: the model's folder.
        workload: what to measure.
    """

    loaded: Loaded

    def __init__(self, model: Path, workload: Workload) -> None:
        self._model, self._workload = model, workload
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_running(self) -> bool:
        """True between the start and `close`."""
        return self._process is not None

    def __enter__(self) -> Self:
        """Load the model.

        Raises:
            SoftshardsError: the process failed.
        """
        command = [sys.executable, "-m", "labeler.labeling.bench.bench_model", str(self._model)]
        self._process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(self._workload))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.loaded = Loaded.model_validate_json(self._answer(self._process))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def measure(self) -> Round:
        """Measure one round.

        Raises:
            SoftshardsError: the process failed.
        """
        assert self._process is not None
        try:
            _pipe(self._process.stdin).write("\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:  # the answer, which is missing, says more
            pass
        return Round.model_validate_json(self._answer(self._process))

    def _answer(self, process: subprocess.Popen[str]) -> str:
        if line := _pipe(process.stdout).readline():
            return line
        raise SoftshardsError(
            f"the measurement failed with exit code {process.wait()}; see the log above",
            path=self._model,
        )

    def close(self) -> None:
        """End the process, if it runs, and free its memory."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=GRACE_SECONDS)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def summarize_rounds(
    model: NamedModel, loaded: Loaded, rounds: Sequence[Round], workload: Workload
) -> BenchModel:
    """Return the figures of a model from the answers of its process."""

    def waves(count: int) -> list[Wave]:
        at = workload.levels.index(count)
        return [one.waves[at] for one in rounds]

    busy = waves(workload.sequences)
    joules = [wave.joules for wave in busy if wave.joules is not None]
    if len(joules) < len(busy) or len({wave.energy_source for wave in busy}) > 1:
        joules = []
    generated = workload.sequences * workload.new_tokens
    return BenchModel(
        name=model.name,
        model=model.source,
        weights=model.weights,
        engine=loaded.engine,
        device=loaded.device,
        load_seconds=loaded.load_seconds,
        reading=Measured.of(
            [wave.requests * workload.prompt_tokens / wave.reading_s for wave in busy]
        ),
        generating=Measured.of([wave.generating for wave in busy]),
        latencies=tuple(
            Latency(
                concurrency=count,
                first_token_s=Measured.of([wave.first_token_s for wave in waves(count)]),
                last_token_s=Measured.of([wave.last_token_s for wave in waves(count)]),
                tokens_per_s=Measured.of(
                    [count * workload.new_tokens / wave.seconds for wave in waves(count)]
                ),
            )
            for count in workload.levels
        ),
        peak_memory_bytes=max(one.peak_memory_bytes for one in rounds),
        joules_per_token=Measured.of([one / generated for one in joules]) if joules else None,
        energy_source=busy[0].energy_source if joules else None,
        energy_is_estimated=bool(joules) and busy[0].energy_is_estimated,
    )
