"""A user's verifier: a Python function or a command, run on rows with a time limit.

It runs in separate processes. Whatever it does costs only its row.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path

from labeler.labelsets.curate.process_group import (
    Drain,
    adopting_orphans,
    kill_group,
    start_group,
)
from labeler.labelsets.curate.verdict import Verdict, as_verdict, failed
from labeler.labelsets.curate.verifier_pool import Verify, function_pool
from schemas.errors import SoftshardsError
from schemas.fingerprint import sha256_file


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
            SoftshardsError: the function or the program is missing.
        """
        if self.is_command:
            words = _split_command(self.target)
            with adopting_orphans(), ThreadPoolExecutor(self.jobs) as pool:
                yield lambda rows: pool.map(
                    lambda row: _run_command(words, row, self.timeout), rows
                )
            return
        with adopting_orphans(), function_pool(self.target, self.timeout, self.jobs) as verify:
            yield verify


def _module_file(target: str) -> Path | None:
    """Find the file of a function's module, without importing the packages that it is in."""
    search = [str(Path.cwd()), *sys.path]
    file = None
    for part in target.partition(":")[0].split("."):
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search, file = list(spec.submodule_search_locations or []), spec.origin
    return Path(file) if file and Path(file).is_file() else None


def _split_command(command: str) -> list[str]:
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
    """Run a command on a row; every process that it has started ends with it."""
    with tempfile.TemporaryFile() as file:  # a pipe would fill if the command does not read it
        file.write(json.dumps(row).encode())
        file.seek(0)
        pipe = subprocess.PIPE
        process = start_group(words, stdin=file, stdout=pipe, stderr=pipe)
    assert process.stdout is not None, "it is a pipe"
    assert process.stderr is not None, "it is a pipe"
    output, errors = Drain(process.stdout), Drain(process.stderr, last=True)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return failed(f"time limit of {timeout:g} s")
    finally:
        kill_group(process)
    return _command_verdict(code, output.text(), errors.text())


def _command_verdict(code: int, output: str, errors: str) -> Verdict:
    if code < 0:
        return failed(f"killed by {signal.Signals(-code).name}")
    if code != 0:
        lines = errors.strip().splitlines()
        # A test fails with exit code 1 and no output.
        if not lines:
            return Verdict(0.0, False)
        return replace(failed(f"exit code {code}: {lines[-1]}"), number=0.0)
    try:
        return as_verdict(float(output)) if output.strip() else Verdict(1.0, True)
    except ValueError:
        return Verdict(1.0, True)
