"""A user's verifier: a Python function or a command, run on rows with a time limit.

It runs in processes of its own. One that crashes, hangs or returns nonsense costs its row alone.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labeler.labelsets.curate.verifier_process import call, load_function, prepare, search_here
from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.fingerprint import sha256_file

Verify = Callable[[Sequence[dict[str, Any]]], Iterator["Verdict"]]
"""From rows to their verdicts, in order, each as soon as it is there."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier said of a row.

    Attributes:
        number: its number; 1 or 0 for true and false; None where it said nothing.
        passed: whether the row is kept, as far as the verifier is concerned.
        fault: why nothing was said: a crash, the time limit, nonsense.
    """

    number: float | None
    passed: bool
    fault: str | None = None


@dataclass(frozen=True)
class Verifier:
    """What to run.

    Attributes:
        target: `module:function`, or a command.
        is_command: which of them.
        timeout: seconds a row; jobs: processes at a time.
    """

    target: str
    is_command: bool
    timeout: float
    jobs: int

    @property
    def version(self) -> str:
        """What a stored verdict depends on: the target, its file's content, the time limit."""
        files = _files(self.target) if self.is_command else [_module_file(self.target)]
        digests = [sha256_file(file) for file in files if file is not None]
        return json.dumps([self.target, digests, self.timeout])

    @contextmanager
    def running(self) -> Iterator[Verify]:
        """What verifies rows, as long as this is open.

        Raises:
            SoftshardsError: there is no such function or program, or pebble is not installed.
        """
        if self.is_command:
            words = _words(self.target)
            with ThreadPoolExecutor(self.jobs) as pool:
                yield lambda rows: pool.map(lambda row: _ask(words, row, self.timeout), rows)
            return
        with _function_pool(self) as verify:
            yield verify


def verdict_of(value: Any) -> Verdict:
    """The verdict that a returned value is."""
    if isinstance(value, bool):
        return Verdict(float(value), value)
    if hasattr(value, "item"):  # a number of numpy's or torch's
        value = value.item()
        return verdict_of(value)
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
    except Exception as error:  # a user's module may raise anything
        raise SoftshardsError(
            f"--verify {verifier.target}: {type(error).__name__}: {first_line(error)}",
            hint="give module:function, importable from here: `--verify checks:is_right`",
        ) from error
    # Polars has threads, so no fork of this process; a fork server starts workers quickly.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPool(
        verifier.jobs, initializer=prepare, initargs=(verifier.target,), context=context
    )

    def verify(rows: Sequence[dict[str, Any]]) -> Iterator[Verdict]:
        futures = [pool.schedule(call, (row,), timeout=verifier.timeout) for row in rows]
        return (_result(future, verifier.timeout) for future in futures)

    try:
        yield verify
    finally:
        pool.stop()
        pool.join()


def _result(future: Any, timeout: float) -> Verdict:
    from pebble import ProcessExpired

    try:
        return verdict_of(future.result())
    except TimeoutError:
        return Verdict(None, False, f"time limit of {timeout:g} s")
    except ProcessExpired as error:
        return Verdict(None, False, f"its process died (exit code {error.exitcode})")
    except Exception as error:  # whatever the user's function raises
        return Verdict(None, False, f"{type(error).__name__}: {first_line(error)}")


def _module_file(target: str) -> Path | None:
    search_here()
    try:
        spec = find_spec(target.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _words(command: str) -> list[str]:
    import shutil

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SoftshardsError(f"--verify-command {command!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise SoftshardsError(
            f"--verify-command {command!r}: there is no such program",
            hint="check its name, and that it may be executed; it is not run by a shell",
        )
    return words


def _files(command: str) -> list[Path]:
    """The files among a command's words: programs in PATH are not looked into."""
    return [path for word in _words(command) if (path := Path(word)).is_file()]


def _ask(words: list[str], row: dict[str, Any], timeout: float) -> Verdict:
    """Run a command on a row; at the time limit it is killed with all that it has started."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(json.dumps(row), timeout)
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
        # Exit code 1 without a word is how a test says no.
        fault = f"exit code {process.returncode}: {lines[-1]}" if lines else None
        return Verdict(0.0, False, fault)
    try:
        return verdict_of(float(said)) if said.strip() else Verdict(1.0, True)
    except ValueError:
        return Verdict(1.0, True)
