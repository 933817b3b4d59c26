"""How long a run will take: from the speed of a matrix product, or measured on a few rows."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labeler.console import err
from labeler.labeling.engines.engine import Engine, Labeled, Request
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import rough_seconds
from labeler.labeling.planning.cut import Planned
from labeler.labeling.rendering.spans import Span
from labeler.labeling.runs.label_units import load_engine
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, SoftshardsError

FEW_TOKENS = 2048
"""Tokens of the first measurement; four times as many follow while one takes under SECONDS."""
SECONDS = 2.0
FEW_GENERATED = 32
"""Tokens that a calibration generates a prompt at most."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Engine seconds for a whole plan, on one engine.

    Attributes:
        seconds: for all rows; at most, where answers may end before --max-tokens.
        tokens_per_s: as measured, read and generated tokens together; None for the rough figure.
    """

    seconds: float
    tokens_per_s: float | None


def work_tokens(planned: Planned, config: LabelConfig) -> int:
    """Tokens that the engine is to read and to generate."""
    return planned.n_tokens + (planned.n_labels if config.mode == "generate" else 0)


def rough_timing(planned: Planned, config: LabelConfig, identity: Identity) -> Timing:
    """From the size of the teacher and the speed of one matrix product: within a factor of three.

    0 seconds for a served teacher, whose machine is not known.
    """
    if config.engine == "served":
        return Timing(seconds=0.0, tokens_per_s=None)
    tokens = work_tokens(planned, config)
    return Timing(
        seconds=rough_seconds(config.model, identity.dtype, tokens=tokens), tokens_per_s=None
    )


def measured_timing(
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
    rows = next(planned.tables()).select(["input_ids", "spans", "n_tokens"]).to_pylist()
    engine = load_engine(teacher, config, identity, batched_tokens=batched_tokens)
    with contextlib.closing(engine):
        _label(engine, rows[-1:])  # the first call of all is slower
        count = FEW_TOKENS
        while True:
            chosen = _spread(rows, count, config)
            clock = time.perf_counter()
            tokens = _label(engine, chosen)
            seconds = time.perf_counter() - clock
            if seconds >= SECONDS or len(chosen) == len(_spread(rows, 4 * count, config)):
                break
            count *= 4
    speed = tokens / seconds
    return Timing(seconds=work_tokens(planned, config) / speed, tokens_per_s=speed)


def _spread(rows: list[dict[str, Any]], tokens: int, config: LabelConfig) -> list[dict[str, Any]]:
    """Rows of `tokens` tokens together, of all lengths: a unit has the longest first."""
    if config.mode == "generate":
        count = config.max_sequences * max(1, tokens // FEW_TOKENS)
    else:
        count = int(tokens * len(rows) / sum(row["n_tokens"] for row in rows))
    count = min(max(count, 1), len(rows))
    return [rows[(2 * n + 1) * len(rows) // (2 * count)] for n in range(count)]


def _label(engine: Engine, rows: Sequence[dict[str, Any]]) -> int:
    """Label rows; return how many tokens were read and generated."""
    requests = [
        Request(
            index=index,
            sample=0,
            input_ids=row["input_ids"],
            spans=tuple(Span(**span) for span in row["spans"]),
            seed=index,
        )
        for index, row in enumerate(rows)
    ]
    tokens, reason = 0, ""
    for outcome in engine.run(requests):
        if isinstance(outcome, Labeled):
            tokens += len(outcome.input_ids)
        else:
            reason = outcome.reason
    if not tokens:
        raise SoftshardsError(f"none of the rows could be labeled: {reason}")
    return tokens
