from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np
import pytest

from schemas import open_label_set
from tests.trainer.conftest import World
from trainer.audit.overlap import copied_shares, longest_run, matched_tokens


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("generated", "row", "matched", "run"),
    [
        ((1, 2, 3), (1, 2, 3, 4), 3, 3),
        ((1, 2, 9), (1, 2, 3, 4), 2, 2),
        ((9, 2, 3), (1, 2, 3, 4), 0, 2),
        ((5, 6), (1, 2), 0, 0),
        ((1, 1, 1, 1), (1, 1), 2, 2),
        ((1,), (), 0, 0),
    ],
)
def test_runs_by_hand(
    generated: tuple[int, ...], row: tuple[int, ...], matched: int, run: int
) -> None:
    assert matched_tokens(ids(*generated), ids(*row)) == matched
    assert longest_run(ids(*generated), ids(*row)) == run


def test_longest_run_equals_difflib() -> None:
    draw = np.random.default_rng(0)
    for _ in range(100):
        a, b = (draw.integers(0, 3, size) for size in draw.integers(1, 30, 2))
        match = SequenceMatcher(None, a.tolist(), b.tolist(), autojunk=False)
        expected = match.find_longest_match().size
        assert longest_run(a.astype(np.int32), b.astype(np.int32)) == expected


def test_copied_shares_equal_sets_of_tuples(world: World) -> None:
    n = 3
    known = {tuple(row.input_ids[i : i + n]) for row in world.rows for i in range(48)}
    draw = np.random.default_rng(1)
    prefixes, generations = [], []
    for row in world.rows:
        said = np.array(row.input_ids[2:])
        said[draw.random(len(said)) < 0.2] = 7
        generations.append(said.astype(np.int32))
        prefixes.append(np.array(row.input_ids[:6], np.int32))
    shares = copied_shares(open_label_set(world.labels), prefixes, generations, n)
    for prefix, said, share in zip(prefixes, generations, shares):
        own = {tuple(said[i : i + n].tolist()) for i in range(len(said) - n + 1)}
        own -= {tuple(prefix[i : i + n].tolist()) for i in range(len(prefix) - n + 1)}
        assert share == pytest.approx(len(own & known) / len(own) if own else 0.0)
    assert 0.2 < np.mean(shares) < 0.9
