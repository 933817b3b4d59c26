"""U1: processor time from typing a command to its answer, against importing PyArrow and Polars.

    python -m benchmarks.starts [--repeats 5]

Each command is a process of its own, as a user starts it; the median counts. User and system time
of the process and its children are added up, so that other work on the machine matters little.
`inspect` and `verify` read the quickstart's held-out label set, which is labeled first where it is
missing. `vs_import` is `labeler_help / import`: a start that costs less than those two imports
has none of the heavy libraries in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".cache" / "smollm2-135m-instruct"
QUICKSTART = ROOT / "runs" / "quickstart"
HELDOUT = QUICKSTART / "labels-heldout"


def run(*command: str | Path) -> None:
    """Run a command of this checkout to its end.

    Raises:
        SystemExit: it failed; its output is printed.
    """
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"error: {' '.join(map(str, command))} ended with {done.returncode}")


def seconds(*command: str | Path, repeats: int) -> float:
    """Return the median of the processor seconds that a command takes."""
    found = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(found)


def make_heldout() -> None:
    """Label the quickstart's held-out articles with the quickstart's settings."""
    corpus = QUICKSTART / "corpus"
    run(sys.executable, "scripts/get_teacher.py", TEACHER)
    run(sys.executable, "scripts/make_corpus.py", corpus)
    settings = ("--k", "64", "--row-group-labels", "4096", "--unit-labels", "8192")
    labeler = (sys.executable, "-m", "labeler", "label")
    run(*labeler, corpus / "heldout.jsonl", "--model", TEACHER, *settings, "--out", HELDOUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    make_heldout()  # does nothing where the set is finished
    python = sys.executable
    commands: dict[str, tuple[str | Path, ...]] = {
        "import": (python, "-c", "import pyarrow, polars"),
        "labeler_help": (python, "-m", "labeler", "--help"),
        "trainer_help": (python, "-m", "trainer", "--help"),
        "inspect": (python, "-m", "labeler", "inspect", HELDOUT, "--json"),
        "verify": (python, "-m", "labeler", "verify", HELDOUT),
    }
    found = {}
    for name, command in commands.items():
        found[name] = seconds(*command, repeats=repeats)
        print(f"{name:14} {found[name]:6.2f} s of processor time")
    figures = {name: round(value, 3) for name, value in found.items() if name != "import"}
    figures["vs_import"] = round(found["labeler_help"] / found["import"], 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
