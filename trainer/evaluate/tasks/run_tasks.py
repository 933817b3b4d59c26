"""Run the tasks that results lack, each model in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas import SoftshardsError
from trainer.console import message_console
from trainer.evaluate.tasks.task_child import Reply, Request
from trainer.evaluate.tasks.task_files import TaskSpec
from trainer.evaluate.tasks.task_results import MeasuredTask, TaskSettings, lookup_task

CHILD = "trainer.evaluate.tasks.task_child"


def harness_version() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        SoftshardsError: it is not installed.
    """
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise SoftshardsError(
            "lm-evaluation-harness is not installed", hint="pip install 'softshards[tasks]'"
        ) from error


def run_tasks(
    model: Path,
    digest: str,
    specs: list[TaskSpec],
    settings: TaskSettings,
    known: list[MeasuredTask],
    *,
    place: str,
    allow_code: bool,
    store: Callable[[], None],
) -> None:
    """Run tasks on a model, and append to `known` what it lacks.

    Args:
        model: its folder.
        digest: of its weights.
        specs: the tasks.
        settings: the same for all models.
        known: results so far.
        place: the model's name in messages.
        allow_code: the tasks may run Python.
        store: called after each task.

    Raises:
        SoftshardsError: a task cannot be run.
    """
    missing = []
    for spec in specs:
        found = lookup_task(
            known, model=digest, name=spec.name, digest=spec.digest, settings=settings
        )
        if found is None:
            missing.append(spec)
        else:
            message_console().print(f"{place}: {spec.name}: reused")
    if not missing:
        return
    names = ", ".join(spec.name for spec in missing)
    message_console().print(f"{place}: running {names}")
    request = Request(
        model=str(model.resolve()),
        tasks=[spec.name if spec.path is None else str(spec.path.resolve()) for spec in missing],
        settings=settings,
        allow_code=allow_code,
    )
    for spec, reply in zip(missing, _replies(request)):
        if reply.error is not None:
            raise SoftshardsError(
                f"{place}: {reply.error}", path=spec.path or spec.name, hint=reply.hint
            )
        known.append(
            MeasuredTask(
                model=digest,
                name=spec.name,
                digest=spec.digest,
                path=None if spec.path is None else str(spec.path),
                settings=settings,
                metrics=reply.metrics,
            )
        )
        store()


def _replies(request: Request) -> Iterator[Reply]:
    """Yield one reply per task, or one with an error.

    The process has its own environment, random states and memory. It is offline unless the user's
    HF_HUB_OFFLINE says otherwise.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "1")
    environment = os.environ | {
        "HF_HUB_OFFLINE": offline,
        "HF_DATASETS_OFFLINE": offline,
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then kills it
        )
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        left = len(request.tasks)
        try:
            with contextlib.suppress(BrokenPipeError):  # it died: its missing reply tells
                process.stdin.write(request.model_dump_json().encode() + b"\n")
                process.stdin.flush()
            for line in _lines(process.stdout.fileno()):
                left -= 1
                yield Reply.model_validate_json(line)
            code = process.wait()
            if left > 0:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended"
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                yield Reply(
                    error=": ".join([f"the process of the tasks {how}", *last]),
                    hint="it may lack memory: --task-limit runs fewer items" if code < 0 else None,
                )
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stdin):
                pipe.close()


def _lines(pipe: int) -> Iterator[bytes]:
    """Yield the lines of a pipe; Ctrl-C interrupts the wait for one.

    It does not interrupt a read where a library handles signals, as Polars does: the read is
    restarted. `select` is not.
    """
    rest = b""
    while True:
        select.select([pipe], [], [])
        block = os.read(pipe, 1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
