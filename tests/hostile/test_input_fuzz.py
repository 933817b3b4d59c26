"""Some cases of each fuzzer; `python -m tests.hostile.fuzz TARGET` runs more."""

from __future__ import annotations

import pytest

from tests.fork_server import fork_server
from tests.hostile.fuzz import targets

COUNTS = {
    **{"corpora": 400, "records": 150, "settings": 400, "templates": 200, "imports": 60},
    **{"files": 300, "models": 100, "reports": 8, "sets": 150},
    **{"stores": 40, "caches": 40, "hub": 20},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", targets())
def test_no_input_is_a_traceback(name: str) -> None:
    """In a process of its own: it forks, which hangs where Polars was used."""
    server = fork_server("tests.hostile.preload")
    done = server.run("tests.hostile.fuzz", name, "--count", COUNTS[name], "--seed", 14)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNTS[name]} cases, 0 failures" in done.stdout
