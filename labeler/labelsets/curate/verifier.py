"""A user's verifier: a Python function or a command, run on rows with a time limit.

It runs in separate processes. One that crashes, hangs or returns nonsense costs only its row.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from labeler.labelsets.curate.verifier_process import (
    call_function,
    load_function,
    search_working_folder,
    start_worker,
)
from schemas.errors import SoftshardsError, first_line
from schemas.fingerprint import sha256_file

Verify = Callable[[Sequence[dict[str, object]]], Iterator["Verdict"]]
"""Turns rows into verdicts, in order, and yields each as soon as it is given."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's verdict on a row.

    Attributes:
        number: its number; 1 or 0 for true and false; None if it gave none.
        passed: whether the verifier keeps the row.
        fault: why it gave no answer: a crash, the time limit, nonsense.
    """

    number: float | None
    passed: bool
    fault: str | None = None


@dataclass(frozen=True)
class Verifier:
    """A function or command that verifies rows.

    Attributes:
        target: `module:function`, or a command.
        is_command: whether the target is a command.
        timeout: seconds per row.
        jobs: processes at a time.
    """

    target: str
    is_command: bool
    timeout: float
    jobs: int

    @property
    def version(self) -> str:
        """Identifies what a verdict depends on: target, content of its files, time limit."""
        files = _files(self.target) if self.is_command else [_module_file(self.target)]
        digests = [sha256_file(file) for file in files if file is not None]
        return json.dumps([self.target, digests, self.timeout])

    @contextmanager
    def running(self) -> Iterator[Verify]:
        """Yield the function that verifies rows, while the context lasts.

        Raises:
            SoftshardsError: the function, the program or pebble is missing.
        """
        if self.is_command:
            words = _split_command(self.target)
            with ThreadPoolExecutor(self.jobs) as pool:
                yield lambda rows: pool.map(
                    lambda row: _run_command(words, row, self.timeout), rows
                )
            return
        with _function_pool(self) as verify:
            yield verify


def as_verdict(value: object) -> Verdict:
    """Return a verifier's return value as a verdict."""
    if isinstance(value, bool):
        return Verdict(float(value), value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return as_verdict(value.item())
    if isinstance(value, int | float) and not math.isnan(value):
        return Verdict(float(value), True)
    return Verdict(None, False, f"returned {value!r:.60}, neither true or false nor a number")


@contextmanager
def _function_pool(verifier: Verifier) -> Iterator[Verify]:
    try:
        from pebble import ProcessPool
    except ImportError as error:
        raise SoftshardsError(
            "--verify needs the package pebble", hint="pip install 'softshards[curation]'"
        ) from error
    try:
        load_function(verifier.target)
    except Exception as error:  # the user's module may raise anything
        raise SoftshardsError(
            f"--verify {verifier.target}: {type(error).__name__}: {first_line(error)}",
            hint="give module:function, importable from here: `--verify checks:is_right`",
        ) from error
    # Polars has threads, so this process must not fork; a fork server starts workers quickly.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPool(
        verifier.jobs, initializer=start_worker, initargs=(verifier.target,), context=context
    )

    def verify(rows: Sequence[dict[str, object]]) -> Iterator[Verdict]:
        futures = [pool.schedule(call_function, (row,), timeout=verifier.timeout) for row in rows]
        return (_result(future, verifier.timeout) for future in futures)

    try:
        yield verify
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _result(future: Future[object], timeout: float) -> Verdict:
    from pebble import ProcessExpired

    try:
        return as_verdict(future.result())
    except TimeoutError:
        return Verdict(None, False, f"time limit of {timeout:g} s")
    except ProcessExpired as error:
        return Verdict(None, False, f"its process died (exit code {error.exitcode})")
    except Exception as error:  # whatever the user's function raises
        return Verdict(None, False, f"{type(error).__name__}: {first_line(error)}")


def _module_file(target: str) -> Path | None:
    search_working_folder()
    try:
        spec = find_spec(target.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _split_command(command: str) -> list[str]:
    import shutil

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SoftshardsError(f"--verify-command {command!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise SoftshardsError(
            f"--verify-command {command!r}: no such program",
            hint="check its name, and that it is executable; no shell runs it",
        )
    return words


def _files(command: str) -> list[Path]:
    """Return the files among a command's words; programs in PATH are not searched."""
    return [path for word in _split_command(command) if (path := Path(word)).is_file()]


def _run_command(words: list[str], row: dict[str, object], timeout: float) -> Verdict:
    """Run a command on a row; the time limit kills it and every process that it has started."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(json.dumps(row), timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Verdict(None, False, f"time limit of {timeout:g} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Verdict(None, False, f"killed by {name}")
    if process.returncode != 0:
        lines = errors.strip().splitlines()
        # A test fails with exit code 1 and no output.
        fault = f"exit code {process.returncode}: {lines[-1]}" if lines else None
        return Verdict(0.0, False, fault)
    try:
        return as_verdict(float(output)) if output.strip() else Verdict(1.0, True)
    except ValueError:
        return Verdict(1.0, True)
