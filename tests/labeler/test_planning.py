from __future__ import annotations

import pytest

from labeler.planning import plan_units
from labeler.rendering import Sequence, Span
from labeler.sources import Reject
from schemas import SoftshardsError


def sequence(name: str, tokens: int = 10) -> Sequence:
    return Sequence(
        id=name,
        chunk=0,
        source="f",
        meta=None,
        prompt=None,
        input_ids=list(range(tokens)),
        spans=(Span(start=1, stop=tokens, kind="text"),),
        n_labels=tokens - 1,
    )


def plan(items: list[Sequence | Reject], seed: int = 0, strict: bool = False) -> list[list[str]]:
    planned = plan_units(items, seed=seed, unit_labels=45, strict=strict)
    return [unit["id"].to_pylist() for unit in planned.units]


def test_the_cut_depends_on_keys_and_seed_not_on_input_order() -> None:
    rows = [sequence(f"r{i}") for i in range(40)]
    assert plan(list(rows)) == plan(list(reversed(rows)))
    assert plan(list(rows)) != plan(list(rows), seed=1)
    assert {name for unit in plan(list(rows)) for name in unit} == {r.id for r in rows}
    assert [len(unit) for unit in plan(list(rows))] == [5] * 8


def test_units_are_no_prefix_of_the_input() -> None:
    """A unit is a sample of the whole input, so that a partial set is an unbiased one."""
    first = plan([sequence(f"r{i:03d}") for i in range(400)])[:10]
    numbers = [int(name[1:]) for unit in first for name in unit]
    assert 130 < sum(numbers) / len(numbers) < 270


def test_long_rows_come_first_inside_a_unit() -> None:
    planned = plan_units(
        [sequence(f"r{i}", 2 + i) for i in range(8)], seed=0, unit_labels=1000, strict=False
    )
    (unit,) = planned.units
    assert unit["n_tokens"].to_pylist() == sorted(unit["n_tokens"].to_pylist(), reverse=True)


def test_a_row_larger_than_a_unit_gets_its_own() -> None:
    assert [len(unit) for unit in plan([sequence("big", 200), sequence("big2", 200)])] == [1, 1]


def test_repeated_id_is_a_reject() -> None:
    planned = plan_units([sequence("a"), sequence("a")], seed=0, unit_labels=45, strict=False)
    assert planned.rows == 1
    assert [r.reason for r in planned.rejects] == ["id occurs twice"]


def test_nothing_to_label_says_why() -> None:
    reject = Reject(id="f:3", source="f", reason="line 4 is not JSON")
    with pytest.raises(SoftshardsError, match="line 4 is not JSON"):
        plan([reject])
    with pytest.raises(SoftshardsError, match="no usable record"):
        plan([])
    with pytest.raises(SoftshardsError, match="f:3"):
        plan([sequence("a"), reject], strict=True)
