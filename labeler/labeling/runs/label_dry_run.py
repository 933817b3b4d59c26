"""`labeler label --dry-run`: the plan and its cost, without labeling."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labeler.console import human_bytes, human_seconds, out
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import (
    estimate_bytes,
    estimate_state_bytes,
    free_bytes,
    most_labels,
    with_states_codec,
)
from labeler.labeling.planning.cut import Planned
from labeler.labeling.planning.engine_memory import (
    Memory,
    checkpoint_size,
    engine_memory,
    remote_size,
    require_memory,
    step_tokens,
)
from labeler.labeling.planning.placement import Placement
from labeler.labeling.runs.identify_teacher import identify_teacher
from labeler.labeling.runs.plan_input import plan_input
from labeler.labeling.runs.timing import Timing, measure_timing, rough_timing
from labeler.labeling.teacher.locate_teacher import locate_teacher
from schemas.urls import is_url


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A plan and its estimated cost.

    Attributes:
        planned: the plan in numbers.
        labels: of them, about how many are stored, at most.
        bytes: of the label set; free_bytes: of its disk, None in an object store.
        states: layers and codec of the hidden states; state_bytes: their part of `bytes`, with the
            head.
        memory: of the engine.
        timing: engine time for the whole plan.
        dtype, context: of the teacher: the dtype that it runs in, and its longest sequence.
    """

    planned: Planned
    labels: int
    bytes: int
    free_bytes: int | None
    memory: Memory
    timing: Timing
    dtype: str
    context: int
    states: str | None
    state_bytes: int


def dry_run(inputs: Sequence[str], config: LabelConfig, *, calibrate: bool = False) -> DryRun:
    """Plan and estimate without writing to `config.out`.

    Args:
        inputs: the input.
        config: all settings.
        calibrate: load the teacher and measure its speed on a few rows.

    Raises:
        SoftshardsError: the input cannot be planned, or the teacher cannot fit in memory.
    """
    # Nothing is compared with this identity: the headers of the weights are enough.
    config, source = locate_teacher(config, weights=calibrate)
    teacher, identity = identify_teacher(config, weights_digest="header", source=source)
    files = find_inputs(inputs)
    step = step_tokens(config, identity.vocab_size)
    size = (
        remote_size(source.missing_bytes, teacher.dtype, identity.dtype)
        if source.missing_bytes
        else checkpoint_size(config.model, identity.dtype)
    )
    memory = engine_memory(config, size, vocab_size=identity.vocab_size, batched_tokens=step)
    with (
        tempfile.TemporaryDirectory() as folder,
        plan_input(
            files, config, teacher, Path(folder) / "plan.sqlite", k=identity.width
        ) as planned,
    ):
        if calibrate:
            require_memory(memory, config.model)
            timing = measure_timing(planned, config, teacher, identity, batched_tokens=step)
        else:
            timing = rough_timing(planned, config, size.parameters, identity.dtype)
        labels = most_labels(planned, config.keep_positions, config.samples_per_row)
        identity = with_states_codec(identity, labels, teacher.width)
        states = estimate_state_bytes(labels, identity, kl=config.state_kl, width=teacher.width)
        return DryRun(
            planned=planned,
            labels=labels,
            bytes=states
            + estimate_bytes(labels, k=identity.width, draws=config.draws, codec=config.codec),
            states=identity.states,
            state_bytes=states,
            free_bytes=None if is_url(config.out) else free_bytes(config.folder),
            memory=memory,
            timing=timing,
            dtype=identity.dtype,
            context=teacher.context,
        )


def print_plan(
    inputs: Sequence[str],
    config: LabelConfig,
    *,
    calibrate: bool,
    as_json: bool,
    placement: Placement | None = None,
) -> None:
    """Plan, estimate and print; nothing is written to `config.out`.

    Args:
        inputs, config, calibrate: as for `dry_run`.
        as_json: print JSON.
        placement: where teachers fit into a cluster.
    """
    result = dry_run(inputs, config, calibrate=calibrate)
    planned, timing = result.planned, result.timing
    if as_json:
        facts = {
            "units": planned.units,
            "rows": planned.rows,
            "tokens": planned.n_tokens,
            "dtype": result.dtype,
            "context": result.context,
            "labels": planned.n_labels,
            "stored_labels": result.labels,
            "keep_positions": config.keep_positions,
            "rejects": planned.rejects,
            "estimated_bytes": result.bytes,
            "states": result.states,
            "estimated_state_bytes": result.state_bytes,
            "free_bytes": result.free_bytes,
            "memory": dataclasses.asdict(result.memory),
            "estimated_seconds": round(timing.seconds),
            "tokens_per_s": timing.tokens_per_s and round(timing.tokens_per_s, 1),
        }
        if placement is not None:
            facts["ray"] = placement.as_json()
        print(json.dumps(facts))
        return
    most = " at most" if config.mode == "generate" else ""
    by_entropy = (config.keep_positions or "").startswith("entropy")
    most_stored = " at most" if by_entropy else most
    out.print(f"rows          {planned.rows} in {planned.units} units")
    out.print(f"tokens        {planned.n_tokens}, labels {planned.n_labels}{most}")
    if config.keep_positions is not None:
        out.print(f"stored        {result.labels} labels{most_stored} ({config.keep_positions})")
    out.print(f"teacher       {result.dtype}, context {result.context} tokens")
    out.print(f"rejects       {planned.rejects}")
    for reject in planned.first_rejects:
        out.print(f"              {reject.id}: {reject.reason}")
    out.print(f"size          about {human_bytes(result.bytes)}{most_stored}")
    if result.states is not None:
        size = human_bytes(result.state_bytes) if result.state_bytes else "an unknown part"
        out.print(f"              {size} of it for hidden states ({result.states}) and head")
    if result.free_bytes is not None:
        out.print(f"free disk     {human_bytes(result.free_bytes)}")
    if config.engine == "served":
        out.print("memory        the server's")
    else:
        for line in _memory_lines(result.memory):
            out.print(line)
    if timing.tokens_per_s:
        speed = f"{timing.tokens_per_s:,.0f} tokens/s, measured"
        out.print(f"time          {human_seconds(timing.seconds)}{most} at {speed}")
    elif config.engine == "served":
        out.print("time          unknown (--calibrate measures it)")
    else:
        out.print(
            f"time          roughly {human_seconds(timing.seconds)} (within a factor of three; "
            "--calibrate measures it)"
        )
    for line in placement.lines() if placement is not None else ():
        out.print(line)
    out.print("nothing was written (--dry-run)")


def _memory_lines(memory: Memory) -> list[str]:
    cache = "the rest" if memory.cache is None else human_bytes(memory.cache)
    return [
        f"memory        weights {human_bytes(memory.weights)}, KV cache {cache}, "
        f"logits {human_bytes(memory.logits)} ({memory.batched_tokens} tokens per step)",
        f"free memory   {human_bytes(memory.free)} of {human_bytes(memory.total)}",
    ]
