"""`trainer sweep --dry-run`: what would be done. Loads neither torch nor Ray."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.table import Table

from schemas import LabelSet
from trainer.report.layout import table_console
from trainer.sweep.grid import Sweep
from trainer.sweep.trial_folder import status, tokens_planned, tokens_seen


def show_plan(asked: Sweep, labels: LabelSet, *, as_json: bool) -> int:
    """Print the trials, how far each is, and the tokens left; return the exit code."""
    sliced = {each.out for each in asked.slices if not (each.out / "config.json").is_file()}
    plans: list[dict[str, Any]] = []
    for trial in asked.trials:
        state = "new" if trial.config.student in sliced else status(trial, labels)
        planned = tokens_planned(trial, labels)
        seen = min(tokens_seen(trial.folder), planned) if state == "begun" else 0
        to_do = 0 if state in ("finished", "stopped") else planned - seen
        about = {"name": trial.name, "state": state, "tokens": planned, "tokens_left": to_do}
        plans.append({**about, "settings": trial.settings})
    total = sum(plan["tokens_left"] for plan in plans)
    if as_json:
        sys.stdout.write(json.dumps({"trials": plans, "tokens_left": total}, indent=1) + "\n")
        return 0
    console = table_console()
    table = Table(title="trials")
    table.add_column("trial", overflow="fold")
    for column in ("state", "tokens", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for plan in plans:
        cells = [plan["state"], f"{plan['tokens']:,}", f"{plan['tokens_left']:,}"]
        table.add_row(plan["name"], *cells)
    console.print(table)
    made = f"{len(sliced)} students to slice, " if sliced else ""
    console.print(
        f"{made}{len(plans)} trials, at most {total:,} tokens to train on", soft_wrap=True
    )
    return 0
