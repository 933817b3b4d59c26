"""`labeler label --dry-run`: the plan and what it will cost, printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from labeler.console import human_bytes, human_seconds, out
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import Memory
from labeler.labeling.runs.label_run import dry_run


def print_plan(
    inputs: Sequence[str], config: LabelConfig, *, calibrate: bool, as_json: bool
) -> None:
    """Plan, estimate and print; nothing is written to `config.out`."""
    planned, budget, timing = dry_run(inputs, config, calibrate=calibrate)
    if as_json:
        facts = {
            "units": planned.units,
            "rows": planned.rows,
            "tokens": planned.n_tokens,
            "labels": planned.n_labels,
            "rejects": planned.rejects,
            "estimated_bytes": budget.bytes,
            "free_bytes": budget.free_bytes,
            "memory": dataclasses.asdict(budget.memory),
            "estimated_seconds": round(timing.seconds),
            "tokens_per_s": timing.tokens_per_s and round(timing.tokens_per_s, 1),
        }
        print(json.dumps(facts))
        return
    most = " at most" if config.mode == "generate" else ""
    out.print(f"rows          {planned.rows} in {planned.units} units")
    out.print(f"tokens        {planned.n_tokens}, labels {planned.n_labels}{most}")
    out.print(f"rejects       {planned.rejects}")
    for reject in planned.first_rejects:
        out.print(f"              {reject.id}: {reject.reason}", markup=False)
    out.print(f"size          about {human_bytes(budget.bytes)}{most}")
    out.print(f"free disk     {human_bytes(budget.free_bytes)}")
    if config.engine == "served":
        out.print("memory        the server's")
    else:
        for line in _memory_lines(budget.memory):
            out.print(line)
    if timing.tokens_per_s:
        speed = f"{timing.tokens_per_s:,.0f} tokens/s, measured"
        out.print(f"time          {human_seconds(timing.seconds)}{most} at {speed}")
    elif config.engine == "served":
        out.print("time          not known (--calibrate measures)")
    else:
        out.print(
            f"time          roughly {human_seconds(timing.seconds)} (within a factor of three; "
            "--calibrate measures)"
        )
    out.print("nothing was written (--dry-run)")


def _memory_lines(memory: Memory) -> list[str]:
    cache = "what is left" if memory.cache is None else human_bytes(memory.cache)
    return [
        f"memory        weights {human_bytes(memory.weights)}, KV cache {cache}, "
        f"logits {human_bytes(memory.logits)} ({memory.batched_tokens} tokens a step)",
        f"free memory   {human_bytes(memory.free)} of {human_bytes(memory.total)}",
    ]
