"""Processes that call a verifier's function, each in a process group of its own.

A pool of the standard library, or of pebble, hands on whatever a function raises (`SystemExit` ends
the caller), pickles whatever it returns, and at the time limit kills the worker but not what the
worker has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from labeler.console import err
from labeler.labelsets.curate.process_group import BLOCK, Drain, kill_group, start_group
from labeler.labelsets.curate.verdict import Verdict, failed
from labeler.labelsets.curate.verifier_process import SIZE_BYTES
from schemas.errors import SoftshardsError

Verify = Callable[[Sequence[dict[str, object]]], Iterator[Verdict]]
"""Turns rows into verdicts, in order, and yields each as soon as it is given."""

START_SECONDS = 600.0
"""Time to import the function's module, which may import torch."""
LONGEST_ANSWER = 1 << 14
SHOWN_OUTPUT = 1 << 16
"""Bytes of a function's output that are shown."""


class ProcessDied(Exception):
    """The worker ended without an answer; the message says how."""


class _Output:
    """What functions print, shown up to `SHOWN_OUTPUT` bytes."""

    def __init__(self) -> None:
        self._left = SHOWN_OUTPUT

    def show(self, block: bytes) -> None:
        if self._left <= 0:
            return
        err.print(block[: self._left].decode(errors="replace"), end="")
        self._left -= len(block)
        if self._left <= 0:
            err.print("\n(more output of --verify is not shown)")


class _Worker:
    """A process that has loaded the function.

    Raises:
        SoftshardsError: the function cannot be loaded.
    """

    def __init__(self, target: str, output: _Output) -> None:
        self.verified = 0
        self._row = tempfile.TemporaryFile()  # noqa: SIM115
        self._answers, answers = os.pipe()
        rows = self._row.fileno()
        module = "labeler.labelsets.curate.verifier_process"
        self._process = start_group(
            [sys.executable, "-m", module, target, str(rows), str(answers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=(rows, answers),
        )
        os.close(answers)
        # A child that the function has forked may hold the pipe open.
        self._ended = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None
        assert self._process.stdout is not None, "it is a pipe"
        self._output = Drain(self._process.stdout, show=output.show)
        try:
            loaded = self._answer(START_SECONDS)
        except (ProcessDied, TimeoutError) as error:
            loaded = failed(str(error) or "it is still being imported")
        if loaded.fault is not None:
            self.close()
            raise SoftshardsError(
                f"--verify {target}: {loaded.fault}",
                hint="give module:function, importable from here: `--verify checks:is_right`",
            )

    def verify(self, row: dict[str, object], timeout: float) -> Verdict:
        """Return the function's verdict on a row.

        Raises:
            TimeoutError: it takes too long.
            ProcessDied: its process has ended.
        """
        data = json.dumps(row).encode()
        self._row.seek(0)
        self._row.write(data)
        self._row.flush()
        assert self._process.stdin is not None, "it is a pipe"
        # A dead process is found by its missing answer.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), len(data).to_bytes(SIZE_BYTES, "big"))
        verdict = self._answer(timeout)
        self.verified += 1
        return verdict

    def _answer(self, timeout: float) -> Verdict:
        line, deadline = b"", time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if self._ended is not None:
            poll.register(self._ended, select.POLLIN)
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready = poll.poll(left * 1000) if left > 0 else []
            if not ready:
                raise TimeoutError
            has_answer = any(file == self._answers for file, _ in ready)
            block = os.read(self._answers, BLOCK) if has_answer else b""
            line += block
            if not block:
                kill_group(self._process)
                raise ProcessDied(f"its process died (exit code {self._process.returncode})")
            if len(line) > LONGEST_ANSWER:
                raise ProcessDied("its process sends nonsense")
        try:
            number, passed, fault = json.loads(line)
            return Verdict(number, passed, fault)
        except (ValueError, TypeError) as error:
            raise ProcessDied("its process sends nonsense") from error

    def kill(self) -> None:
        """Kill the process and all that it has started; a thread that waits for it gets to know."""
        kill_group(self._process)

    def close(self) -> None:
        """Kill the process, and close its files."""
        self.kill()
        os.close(self._answers)
        self._row.close()
        if self._ended is not None:
            os.close(self._ended)
        assert self._process.stdin is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class _Pool:
    """Workers for one function, started when needed.

    Args:
        target: `module:function`.
        timeout: seconds per row.

    Raises:
        SoftshardsError: the function cannot be loaded.
    """

    def __init__(self, target: str, timeout: float) -> None:
        self._target, self._timeout = target, timeout
        self._output, self._idle = _Output(), queue.SimpleQueue[_Worker]()
        self._all: set[_Worker] = set()
        self._lock, self._closed = threading.Lock(), False
        self._idle.put(self._start())

    def verify(self, row: dict[str, object]) -> Verdict:
        """Return the function's verdict on a row; whatever happens costs this row alone."""
        while not self._closed:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = self._start()
            is_fresh = worker.verified == 0
            try:
                verdict = worker.verify(row, self._timeout)
            except TimeoutError:
                self._end(worker)
                return failed(f"time limit of {self._timeout:g} s")
            except ProcessDied as error:
                self._end(worker)
                if is_fresh:
                    return failed(str(error))
                continue  # an earlier row may have caused it: closed a file, started a thread
            self._idle.put(worker)
            return verdict
        return failed("interrupted")

    def kill(self) -> None:
        """Kill all workers; busy ones give up their row."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()

    def close(self) -> None:
        """Close all workers; none may be busy."""
        for worker in [*self._all]:
            self._end(worker)

    def _start(self) -> _Worker:
        worker = _Worker(self._target, self._output)
        with self._lock:
            self._all.add(worker)
            if self._closed:
                worker.kill()
        return worker

    def _end(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.close()


@contextmanager
def function_pool(target: str, timeout: float, jobs: int) -> Iterator[Verify]:
    """Yield the function that verifies rows, `jobs` at a time.

    Args:
        target: `module:function`.
        timeout: seconds per row.
        jobs: processes.

    Raises:
        SoftshardsError: the function cannot be loaded.
    """
    pool = _Pool(target, timeout)
    threads = ThreadPoolExecutor(jobs)
    try:
        yield lambda rows: threads.map(pool.verify, rows)
    finally:
        pool.kill()
        threads.shutdown(cancel_futures=True)
        pool.close()
