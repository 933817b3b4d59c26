"""Verifiers that end their process, hang, fork, flood or return nonsense: each costs its row."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from labeler.labelsets.curate.verdict import LONGEST_FAULT, Verdict
from labeler.labelsets.curate.verifier import Verifier
from schemas.errors import SoftshardsError

JUDGE = """
import ctypes, multiprocessing, os, signal, socket, subprocess, sys, threading, time
HANG = [sys.executable, "-c", "import time; time.sleep(97)"]
class Odd(BaseException):
    def __str__(self): raise RuntimeError("no message")
class Lies:
    def item(self): return self
    def __repr__(self): return "x" * 10**7
class Deadly:
    def __repr__(self): os._exit(5)
def spawn(**options):
    with open("pids", "a") as file:
        file.write(f"{subprocess.Popen(HANG, **options).pid}\\n")
def fork():
    if pid := os.fork():
        with open("pids", "a") as file: file.write(f"{pid}\\n")
    return pid
def daemon():
    if os.fork(): return os.wait() and True
    os.setsid()
    if pid := os.fork():
        with open("pids", "a") as file: file.write(f"{pid}\\n")
        os._exit(0)
    for file in range(3, 64):
        try: os.close(file)
        except OSError: pass
    while True: time.sleep(97)
def raise_(error): raise error
def forever(function):
    while True: function()
ATTACKS = {
    "exit 0": lambda: sys.exit(0),
    "exit": lambda: sys.exit("a\\nb"),
    "interrupt": lambda: raise_(KeyboardInterrupt("x")),
    "generator": lambda: raise_(GeneratorExit()),
    "odd": lambda: raise_(Odd()),
    "long message": lambda: raise_(ValueError("x" * 10**7)),
    "os exit": lambda: os._exit(0),
    "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "kill group": lambda: os.killpg(0, signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "huge string": lambda: "x" * 10**8,
    "huge list": lambda: [0] * 10**7,
    "huge number": lambda: 10**10000,
    "lies": Lies,
    "deadly": Deadly,
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "loop": lambda: forever(int),
    "sleep in C": lambda: ctypes.CDLL(None).sleep(97),
    "ignored signals": lambda: [signal.signal(s, signal.SIG_IGN) for s in (15, 2, 14)]
                               and time.sleep(97),
    "children": lambda: spawn() or time.sleep(97),
    "children with sessions": lambda: spawn(start_new_session=True) or time.sleep(97),
    "a daemon": lambda: daemon() and time.sleep(97),
    "a daemon that is left": lambda: daemon() and os._exit(7),
    "a fork that sleeps": lambda: time.sleep(97) if fork() else time.sleep(97),
    "a fork that holds the pipe": lambda: os._exit(4) if fork() else time.sleep(97),
    "endless output": lambda: forever(lambda: print("y" * 10**6)),
    "endless output to the descriptors": lambda: forever(lambda: os.write(2, b"z" * 10**6)),
    # these are good verdicts, and must not spoil the next row's
    "a fork that goes on": lambda: (fork(), True)[1],
    "a daemon that goes on": lambda: daemon(),
    "another folder": lambda: os.chdir("/") or True,
    "a timer": lambda: signal.alarm(1) == 0,
    "closed files": lambda: os.closerange(0, 3) or True,
    "all files closed": lambda: os.closerange(0, 256) or True,
    "recursion": lambda: sys.setrecursionlimit(60) or True,
    "a thread that ends the process":
        lambda: threading.Timer(0.3, lambda: os._exit(6)).start() or True,
    "no output": lambda: [setattr(sys, "stdout", None), setattr(sys, "stdin", None)] and True,
    "good": lambda: True,
}
def check(row):
    return ATTACKS[row["id"]]()
"""
FAULTS = {
    "exit 0": "SystemExit: 0",
    "exit": "SystemExit: a",
    "interrupt": "KeyboardInterrupt: x",
    "generator": "GeneratorExit",
    "odd": "Odd",
    "long message": "ValueError: xxx",
    "os exit": "its process died (exit code 0)",
    "signal": "its process died (exit code -15)",
    "kill group": "its process died (exit code -9)",
    "segfault": "its process died (exit code -11)",
    "huge string": "returned 'xxx",
    "huge list": "returned [0, 0",
    "huge number": "OverflowError",
    "lies": "RecursionError",
    "deadly": "its process died (exit code 5)",
    "none": "returned None",
    "nan": "returned nan",
    "loop": "time limit",
    "sleep in C": "time limit",
    "ignored signals": "time limit",
    "children": "time limit",
    "children with sessions": "time limit",
    "a daemon": "time limit",
    "a daemon that is left": "its process died (exit code 7)",
    "a fork that sleeps": "time limit",
    "a fork that holds the pipe": "its process died (exit code 4)",
    "endless output": "time limit",
    "endless output to the descriptors": "time limit",
}
GOOD = Verdict(1.0, True)


@pytest.fixture(autouse=True)
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    yield
    pids = Path("pids").read_text().split() if Path("pids").exists() else []
    deadline = time.monotonic() + 10  # a killed process takes a moment to end
    while (left := [pid for pid in pids if is_running(int(pid))]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rows(*ids: str) -> list[dict[str, Any]]:
    return [{"id": name, "meta": {}} for name in ids]


def verdicts(target: str, *ids: str, timeout: float = 1.0, jobs: int = 1) -> list[Verdict]:
    verifier = Verifier(target, is_command=" " in target, timeout=timeout, jobs=jobs)
    with verifier.running() as verify:
        return list(verify(rows(*ids)))


QUICK = [name for name, fault in FAULTS.items() if fault != "time limit"]
SLOW = [name for name, fault in FAULTS.items() if fault == "time limit"]


@pytest.mark.slow
def test_faults_cost_their_row_and_good_rows_stay_good() -> None:
    names = [name for fault in QUICK for name in (fault, "good")]
    found = dict(zip(names, verdicts("judge:check", *names, timeout=20, jobs=2), strict=True))
    assert found.pop("good") == GOOD
    for name, verdict in found.items():
        assert (verdict.number, verdict.passed) == (None, False), name
        assert verdict.fault is not None
        assert verdict.fault.startswith(FAULTS[name]), name
        assert len(verdict.fault) <= LONGEST_FAULT


@pytest.mark.slow
def test_nothing_outlives_the_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts("judge:check", *SLOW, "good", timeout=0.7, jobs=3)
    assert found[-1] == GOOD
    assert {verdict.fault for verdict in found[:-1]} == {"time limit of 0.7 s"}
    assert len(capsys.readouterr().err) < 1 << 17


SPOILERS = JUDGE[JUDGE.index("    # these are good") :]


@pytest.mark.slow
@pytest.mark.parametrize("name", [line.split('"')[1] for line in SPOILERS.splitlines()
                                  if line.startswith('    "')])  # fmt: skip
def test_a_verdict_does_not_change_the_next(name: str) -> None:
    verifier = Verifier("judge:check", is_command=False, timeout=20, jobs=1)
    with verifier.running() as verify:
        first, second = verify(rows(name, "good"))
        assert second == GOOD
        assert first == GOOD or name == "all files closed"  # it has closed its own pipe
        time.sleep(0.4 if "thread" in name else 0)
        assert list(verify(rows("good", "none"))) == [GOOD, verdicts("judge:check", "none")[0]]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "its process died"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = 1", "has no attribute 'check'"),
        ("check = 1", "check is not a function"),
        ("import os; os.closerange(3, 99)", "its process"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error(module: str, message: str) -> None:
    Path("bad").mkdir()
    for file in ("bad/__init__.py", "bad.py", "bad/inner.py"):
        Path(file).write_text(module)
        target = "bad.inner:check" if "inner" in file else "bad:check"
        with pytest.raises(SoftshardsError, match=message) as caught:
            verdicts(target, "good")
        assert caught.value.hint
        assert Verifier(target, is_command=False, timeout=1, jobs=1).version
        Path(file).unlink()


def test_output_is_shown_up_to_a_limit_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("noisy.py").write_text(
        "def check(row):\n    print('\\x1b[2J[/x]' * 10**6, flush=True)\n    return True\n"
    )
    assert verdicts("noisy:check", "a", "b", timeout=30) == [GOOD, GOOD]
    time.sleep(0.1)
    shown = capsys.readouterr().err
    assert r"\x1b[2J[/x]" in shown
    assert "\x1b[2J" not in shown
    assert 1 << 16 < len(shown) < 1 << 18


COMMAND = f"{sys.executable} command.py"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("print(3)", Verdict(3.0, True)),
        ("print('x' * 10**8)", GOOD),
        ("import sys; sys.stderr.write('x' * 10**7 + '\\nlast [/x]'); sys.exit(2)",
         Verdict(0.0, False, "exit code 2: last [/x]")),
        ("import sys; sys.stderr.buffer.write(b'\\xff' * 9); sys.exit(2)",
         Verdict(0.0, False, "exit code 2: " + "\ufffd" * 9)),
        ("import os\nwhile True: os.write(1, b'x' * 10**6); os.write(2, b'x' * 10**6)",
         Verdict(None, False, "time limit of 2 s")),
        ("import subprocess as s, sys\n"
         "p = s.Popen([sys.executable, '-c', 'import time; time.sleep(97)'])\n"
         "open('pids', 'a').write(str(p.pid)); print(3)", Verdict(3.0, True)),
        ("import os, time\nif os.fork(): os.wait(); print(3)\nelse:\n os.setsid()\n"
         " if pid := os.fork(): open('pids', 'a').write(str(pid)); os._exit(0)\n"
         " os.closerange(0, 9); time.sleep(97)", Verdict(3.0, True)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
         Verdict(None, False, "killed by SIGSEGV")),
    ],
)  # fmt: skip
def test_commands(script: str, expected: Verdict) -> None:
    Path("command.py").write_text(script)
    begun = time.monotonic()
    verifier = Verifier(COMMAND, is_command=True, timeout=2, jobs=1)
    with verifier.running() as verify:
        assert list(verify([{"id": "x", "text": "y" * (1 << 20)}])) == [expected]
    assert time.monotonic() - begun < 20


def test_memory_stays_small_while_a_command_floods() -> None:
    Path("command.py").write_text("print('x' * 300_000_000)")
    before = psutil.Process(os.getpid()).memory_info().rss
    verifier = Verifier(COMMAND, is_command=True, timeout=60, jobs=1)
    with verifier.running() as verify:
        assert list(verify(rows("x"))) == [GOOD]
    assert psutil.Process(os.getpid()).memory_info().rss - before < 50e6
