"""Flags of `trainer evaluate` about tasks. Attribute docstrings are their help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from schemas.errors import SoftshardsError

TASKS = Group("Tasks", sort_key=1)


@Parameter(name="*", group=TASKS)
@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    """What lm-evaluation-harness runs, on `--teacher` and each `--model` with the same settings."""

    tasks: tuple[str, ...] = ()
    """Tasks to run: YAML files, and names that come with lm-evaluation-harness, separated by
    commas. Offline, unless HF_HUB_OFFLINE=0 is set. Needs `softshards[tasks]`."""

    task_shots: int | None = None
    """Examples before each item; the default is the task's own."""

    task_limit: int | None = None
    """Items per task, the first ones; for a quick look."""

    task_chat: Annotated[bool, Parameter(negative="")] = False
    """Render prompts by the chat template of each model."""

    allow_task_code: Annotated[bool, Parameter(negative="")] = False
    """Run Python that task files name (`!function`, metrics and readers of other libraries)."""

    def __post_init__(self) -> None:
        if self.task_limit is not None and self.task_limit < 1:
            raise SoftshardsError(f"--task-limit is {self.task_limit}, it must be at least 1")
        if self.task_shots is not None and self.task_shots < 0:
            raise SoftshardsError(f"--task-shots is {self.task_shots}, it must be at least 0")
