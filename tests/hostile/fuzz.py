"""Run many cases of a fuzzer, each with its time and memory, in processes that may die.

    python -m tests.hostile.fuzz corpora --count 10000 [--seed 0] [--only NUMBER]

A case may end in rejects, in findings or in `SoftshardsError`. Anything else is printed with the
number that repeats it: an exception, a crash, more than 10 s, more than the target's limit of
memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from labeler.labeling.inputs.record_limits import BadValue
from schemas import SoftshardsError

SECONDS, SILENCE = 10, 60
CHUNK = 500
"""Cases per process."""
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Target:
    """A fuzzer.

    Attributes:
        run: mutates something in the current folder, reads it, and returns what became of it.
        prepare: makes what all cases share, in the current folder, before processes are forked.
        megabytes: most memory of a case.
    """

    run: Callable[[random.Random], str]
    prepare: Callable[[], object] = lambda: None
    megabytes: int = 256


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        counts: cases by what became of them.
        failures: descriptions of what may not happen.
        seconds, megabytes: of the longest and the largest case, with its number.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: tuple[float, int] = (0.0, -1)
    megabytes: tuple[float, int] = (0.0, -1)

    def __str__(self) -> str:
        slow, large = self.seconds, self.megabytes
        return (
            f"{self.counts.total()} cases, {len(self.failures)} failures; longest {slow[0]:.2f} s "
            f"(case {slow[1]}), largest {large[0]:.0f} MB (case {large[1]}); "
            f"{dict(sorted(self.counts.items()))}"
        )


def run_case(target: Target, name: str, seed: int, number: int) -> tuple[str, str | None, float]:
    """Return what became of a case, what is wrong with it, and its seconds."""
    begun, fault = sum(os.times()[:4]), None  # processor time: the machine may be busy
    try:
        outcome = target.run(random.Random(f"{name}/{seed}/{number}"))
    except (SoftshardsError, BadValue):
        outcome = "refused"
    except BaseException:  # a panic of a Rust library is not an Exception
        outcome, fault = "fault", traceback.format_exc(limit=-8)
    seconds = sum(os.times()[:4]) - begun
    if fault is None and seconds > SECONDS:
        fault = f"{seconds:.1f} s"
    return outcome, fault, seconds


def run(name: str, target: Target, *, count: int, seed: int = 0, first: int = 0) -> Outcome:
    """Run cases in forked processes, one after the other."""
    context = multiprocessing.get_context("fork")
    found = Outcome()
    back = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="softshards-fuzz-") as folder:
        os.chdir(folder)
        try:
            target.prepare()
            at, stop = first, first + count
            while at < stop:
                receiver, sender = context.Pipe(duplex=False)
                numbers = range(at, min(at + CHUNK, stop))
                child = context.Process(target=_chunk, args=(name, target, seed, numbers, sender))
                child.start()
                sender.close()
                at = _follow(receiver, numbers, target, found)
                if at < numbers.stop:
                    child.kill()
                child.join()
        finally:
            os.chdir(back)
    return found


def _follow(receiver: Connection, numbers: range, target: Target, found: Outcome) -> int:
    """Add up what a process reports; return the case that the next one begins with."""
    for number in numbers:
        try:
            if not receiver.poll(SILENCE):
                found.failures.append(f"case {number}: hangs")
                return number + 1
            outcome, fault, seconds, megabytes = receiver.recv()
        except EOFError:
            found.failures.append(f"case {number}: the process died")
            return number + 1
        if fault is None and megabytes > target.megabytes:
            fault = f"{megabytes:.0f} MB"
        if fault is not None:
            found.failures.append(f"case {number} ({outcome}):\n{fault}")
        found.counts[outcome] += 1
        found.seconds = max(found.seconds, (seconds, number))
        found.megabytes = max(found.megabytes, (megabytes, number))
    return numbers.stop


def _chunk(name: str, target: Target, seed: int, numbers: range, sender: Connection) -> None:
    folder = tempfile.mkdtemp(dir=".")
    os.chdir(folder)
    base = _resident()
    for number in numbers:
        _forget_peak()
        outcome, fault, seconds = run_case(target, name, seed, number)
        sender.send((outcome, fault, seconds, (_peak() - base) / 1024))
    sys.stdout.flush()
    os._exit(0)


def _forget_peak() -> None:
    if CLEAR.exists():
        CLEAR.write_text("5")


def _peak() -> int:
    """Return the most KB of this process since its peak was forgotten."""
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> int:
    return _status("VmRSS:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text().split(name)[1].split()[0])


def targets() -> Mapping[str, Target]:
    """Return all fuzzers."""
    from tests.hostile import fuzz_files, fuzz_inputs, fuzz_remote, fuzz_sets

    rooms = (fuzz_inputs, fuzz_files, fuzz_sets, fuzz_remote)
    return {name: target for room in rooms for name, target in room.TARGETS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=targets())
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    asked = parser.parse_args()
    first, count = (0, asked.count) if asked.only is None else (asked.only, 1)
    found = run(asked.target, targets()[asked.target], count=count, seed=asked.seed, first=first)
    for failure in found.failures:
        print(f"--- {asked.target} --seed {asked.seed}, {failure}")
    print(f"{asked.target} --seed {asked.seed}: {found}")
    return bool(found.failures)


if __name__ == "__main__":
    sys.exit(main())
