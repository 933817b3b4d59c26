"""The engine time of a plan: from the speed of a matrix product, or measured on a few rows."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass

from labeler.console import err
from labeler.labeling.engines.engine import Engine, Labeled
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.cut import Planned
from labeler.labeling.planning.planned_row import PlannedRow
from labeler.labeling.runs.load_engine import load_engine
from labeler.labeling.runs.unit_requests import unit_requests
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, SoftshardsError

FEW_TOKENS = 2048
"""Tokens of the first measurement; four times as many follow while one takes under SECONDS."""
SECONDS = 2.0
FEW_GENERATED = 32
"""Most tokens per prompt that a calibration generates."""
ENGINE_EFFICIENCY = 0.5
"""Share of the measured matrix-multiply speed that scoring reaches; a rough figure."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Engine seconds for a whole plan, on one engine.

    Attributes:
        seconds: for all rows; an upper bound where answers may end before --max-tokens.
        tokens_per_s: as measured, read and generated tokens together; None for the rough figure.
    """

    seconds: float
    tokens_per_s: float | None


def work_tokens(planned: Planned, mode: str) -> int:
    """Return the tokens that the engine has to read and to generate."""
    return planned.n_tokens + (planned.n_labels if mode == "generate" else 0)


def rough_timing(planned: Planned, config: LabelConfig, parameters: int, dtype: str) -> Timing:
    """Estimate the time within a factor of three, without loading the teacher.

    A token takes two operations per parameter. Only a dry run may call this: the measurement takes
    memory that a real run's engine needs. 0 seconds for a served teacher, whose machine is unknown.

    Args:
        planned: the plan.
        config: the engine and the mode.
        parameters: of the teacher.
        dtype: it runs in, as torch names it.
    """
    if config.engine == "served":
        return Timing(seconds=0.0, tokens_per_s=None)
    operations = 2 * parameters * work_tokens(planned, config.mode)
    seconds = operations / (_matmul_speed(dtype) * ENGINE_EFFICIENCY)
    return Timing(seconds=seconds, tokens_per_s=None)


def measure_timing(
    planned: Planned,
    config: LabelConfig,
    teacher: Teacher,
    identity: Identity,
    *,
    batched_tokens: int,
) -> Timing:
    """Load the teacher, label a few of the planned rows, throw the labels away, and extrapolate.

    Raises:
        SoftshardsError: the teacher cannot be loaded, or cannot label these rows.
    """
    if config.mode == "generate":
        config = dataclasses.replace(config, max_tokens=min(config.max_tokens, FEW_GENERATED))
    err.print(f"loading the teacher {teacher.path} into {config.engine} to measure its speed")
    rows: list[PlannedRow] = next(planned.tables()).to_pylist()
    engine = load_engine(teacher, config, identity, batched_tokens=batched_tokens)
    with contextlib.closing(engine):
        _label(engine, rows[-1:])  # the first call of all is slower
        tokens = FEW_TOKENS
        while True:
            chosen = _spread(rows, _row_count(rows, tokens, config))
            clock = time.perf_counter()
            labeled = _label(engine, chosen)
            seconds = time.perf_counter() - clock
            if seconds >= SECONDS or len(chosen) == _row_count(rows, 4 * tokens, config):
                break
            tokens *= 4
    speed = labeled / seconds
    return Timing(seconds=work_tokens(planned, config.mode) / speed, tokens_per_s=speed)


def _row_count(rows: list[PlannedRow], tokens: int, config: LabelConfig) -> int:
    """Return how many of `rows` have about `tokens` tokens together."""
    if config.mode == "generate":
        count = config.max_sequences * max(1, tokens // FEW_TOKENS)
    else:
        count = int(tokens * len(rows) / sum(len(row["input_ids"]) for row in rows))
    return min(max(count, 1), len(rows))


def _spread(rows: list[PlannedRow], count: int) -> list[PlannedRow]:
    """Choose rows of all lengths: a unit has the longest first."""
    return [rows[(2 * n + 1) * len(rows) // (2 * count)] for n in range(count)]


def _label(engine: Engine, rows: list[PlannedRow]) -> int:
    """Label rows; return the number of tokens read and generated."""
    tokens, reason = 0, ""
    for outcome in engine.run(unit_requests(rows, seed=0, samples=1)):
        if isinstance(outcome, Labeled):
            tokens += len(outcome.input_ids)
        else:
            reason = outcome.reason
    if not tokens:
        raise SoftshardsError(f"none of the rows could be labeled: {reason}")
    return tokens


def _matmul_speed(dtype: str) -> float:
    """Measure the floating-point operations per second of a matrix product on this device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
