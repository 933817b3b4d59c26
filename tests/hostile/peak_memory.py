"""Print by how many KB the peak memory of this process grows: `... set PATH` or `... corpus PATH`.

Of a set, which is read in every way after a good one beside it, `warm`, as a folder and behind a
URL: also seconds of processor time. Of a corpus: also the number of its records and the error that
ends them.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.read_records import read_records
from schemas import SoftshardsError
from tests.fork_server import fork_server
from tests.hostile.fuzz_sets import use
from tests.hostile.sealed import findings, trained_on
from tests.labeler.web import served


def peak_growth(kind: str, path: Path) -> list[str]:
    """Return what a process of its own prints about reading `path`."""
    done = fork_server("tests.hostile.preload").run("tests.hostile.peak_memory", kind, path)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split(maxsplit=2)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _of_set(path: Path) -> tuple[int, float]:
    with served(path.parent, ranges=True) as url:
        for name in ("warm", path.name):
            before = _peak()
            use(path.parent / name)
            found = findings(f"{url}/{name}")
            assert name != "warm" or found == findings(path.parent / name)
            trained_on(f"{url}/{name}")
    return _peak() - before, time.process_time()


def _of_corpus(path: Path) -> tuple[int, int, str]:
    (file,) = find_inputs([str(path)])
    before, count, error = _peak(), 0, ""
    try:
        for _ in read_records(file):
            count += 1
    except SoftshardsError as refused:
        error = refused.what
    return _peak() - before, count, error


if __name__ == "__main__":
    print(*{"set": _of_set, "corpus": _of_corpus}[sys.argv[1]](Path(sys.argv[2])))
