"""A few hundred cases of each fuzzer of inputs; `python -m tests.hostile.fuzz_inputs` runs more."""

from __future__ import annotations

import pytest

from tests.hostile.fuzz_inputs import TARGETS, run_chunk

COUNTS = {"corpora": 400, "records": 150, "settings": 400, "templates": 200, "imports": 60}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_is_a_traceback(target: str) -> None:
    counts, faults = run_chunk(target, 14, range(COUNTS[target]))
    assert not faults, faults[0]
    assert len(counts) > 1
