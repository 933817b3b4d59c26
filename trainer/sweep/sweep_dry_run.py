"""`trainer sweep --dry-run`: print the work ahead. Loads neither torch nor Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.table import Table

from trainer.console import table_console
from trainer.sweep.grid import Settings, Sweep
from trainer.sweep.trial_folder import Status, count_tokens, planned_tokens, read_status
from trainer.train.run_record import RunInputs


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """A trial's state, and its training tokens: all, and those left."""

    name: str
    state: Status
    tokens: int
    tokens_left: int
    settings: Settings


def show_plan(asked: Sweep, inputs: Mapping[str, RunInputs], *, as_json: bool) -> int:
    """Print the trials, their states and the tokens left; return the exit code."""
    to_slice = {each.out for each in asked.slices if not (each.out / "config.json").is_file()}
    plans: list[TrialPlan] = []
    for trial in asked.trials:
        own = inputs[trial.name]
        state = "new" if trial.config.student in to_slice else read_status(trial, own)
        planned = planned_tokens(own)
        seen = min(count_tokens(trial.folder), planned) if state == "begun" else 0
        plan = TrialPlan(
            name=trial.name,
            state=state,
            tokens=planned,
            tokens_left=0 if state in ("finished", "stopped") else planned - seen,
            settings=trial.settings,
        )
        plans.append(plan)
    total = sum(plan.tokens_left for plan in plans)
    if as_json:
        content = {"trials": [asdict(plan) for plan in plans], "tokens_left": total}
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
        return 0
    console = table_console()
    table = Table(title="trials")
    table.add_column("trial", overflow="fold")
    for column in ("state", "tokens", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(plan.name, plan.state, f"{plan.tokens:,}", f"{plan.tokens_left:,}")
    console.print(table)
    made = f"{len(to_slice)} students to slice, " if to_slice else ""
    console.print(
        f"{made}{len(plans)} trials, at most {total:,} tokens to train on", soft_wrap=True
    )
    return 0
