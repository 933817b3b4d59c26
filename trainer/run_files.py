"""The files of a run's folder: their names, and how they are written and read. No torch.

OUT/log.jsonl            one line per step
OUT/eval.jsonl           one line per held-out measurement
OUT/checkpoints/step-*   what a killed run resumes from
OUT/projections.safetensors  of --loss states: from the student's width to the teacher's
OUT/best, OUT/final      models: of the lowest held-out KL, and of the last step
OUT/result.json          written last: a run that has it is finished
OUT/student.json         name and commit of a student from the Hub
OUT/.lock                held while a process writes here
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from schemas.atomic import write_atomic

LOG = "log.jsonl"
EVAL_LOG = "eval.jsonl"
RESULT = "result.json"
FINAL = "final"
BEST = "best"
PROJECTIONS_FILE = "projections.safetensors"
ADAPTER = "adapter"
"""Folder beside a model's weights: its LoRA adapters alone."""
STUDENT = "student.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step-"
META = "meta.json"
"""In each checkpoint, beside its tensors."""
DIGESTS = "digests.json"
"""In each checkpoint: the digests of its files."""

LogLine = dict[str, float]
"""A line of log.jsonl or eval.jsonl; `step`, `tokens` and `labels` are integers."""


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder, such as step-00000200."""
    return f"{STEP_PREFIX}{step:08d}"


def checkpoint_folders(out: Path) -> list[Path]:
    """Return the checkpoints of a run, complete or not, from the oldest to the newest."""
    return sorted((out / CHECKPOINTS).glob(f"{STEP_PREFIX}*"))


def not_finite_name(rank: int) -> str:
    """Return the name of the file that lists the rows whose loss was not finite."""
    return f"not-finite-rank{rank}.json"


def append_line(path: Path, record: Mapping[str, float]) -> None:
    """Append one JSON object to a log."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[LogLine]:
    """Read the complete lines of a log, up to one that is damaged.

    The log may be missing, or another process may be writing it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not isinstance(found, dict) or not isinstance(found.get("step"), int | float):
            break
        lines.append(found)
    return lines


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines of a log past `step`, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    write_atomic(path, "".join(f"{line}\n" for line in kept))
