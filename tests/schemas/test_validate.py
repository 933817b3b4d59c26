from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from schemas.invariants import validate_table
from schemas.labeled_spans import span_problem
from tests.schemas.samples import shard_table


def problems(table: pa.Table) -> list[str]:
    return list(map(str, validate_table(table, vocab_size=100, k=8)))


def with_column(table: pa.Table, name: str, change: Any) -> pa.Table:
    index = table.column_names.index(name)
    values = table[name].to_pylist()
    change(values)
    return table.set_column(index, table.schema.field(name), pa.array(values, table[name].type))


@pytest.mark.parametrize("options", [{}, {"ragged": True}, {"full": True}, {"k": 100}])
def test_valid_rows_have_no_problem(options: dict[str, Any]) -> None:
    table = shard_table([6, 2, 9, 1], **options)
    assert list(validate_table(table, vocab_size=100, k=options.get("k", 8))) == []


def swap(values: Any) -> None:
    values[0][2][0], values[0][2][1] = values[0][2][1], values[0][2][0]


def repeat_id(values: Any) -> None:
    values[1][0][1] = values[1][0][0]


def shift(values: Any) -> None:
    values[2] = values[2][1:] + values[2][:1]


BREAKS = {
    "descending": ("topk_logprobs", swap),
    "twice": ("topk_ids", repeat_id),
    "sum to one": ("tail_logprob", lambda v: v[0].__setitem__(1, -0.001)),
    "above zero": ("token_logprob", lambda v: v[0].__setitem__(1, 0.5)),
    "actual token": ("token_logprob", lambda v: v[0].__setitem__(slice(None), [-1e-4] * 5)),
    "n_labels": ("n_labels", lambda v: v.__setitem__(1, 3)),
    "n_tokens": ("n_tokens", lambda v: v.__setitem__(1, 3)),
    "unknown span kind": ("spans", lambda v: v[0][0].__setitem__("kind", "poem")),
    "outside 1..": ("spans", lambda v: v[0][0].__setitem__("stop", 7)),
    "outside the tokenizer": ("topk_ids", lambda v: v[0][0].__setitem__(0, 100)),
    "input id": ("input_ids", lambda v: v[0].__setitem__(0, 100)),
}


@pytest.mark.parametrize("message", list(BREAKS))
def test_each_broken_invariant_is_reported(message: str) -> None:
    column, change = BREAKS[message]
    found = problems(with_column(shard_table([6, 6, 9]), column, change))
    assert any(message in problem for problem in found), found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.inf, 800.0])
@pytest.mark.parametrize("column", ["tail_logprob", "token_logprob", "topk_logprobs"])
def test_huge_logprobs_are_reported_without_warnings(column: str, value: float) -> None:
    def change(values: Any) -> None:
        values[0][1] = [value] * 8 if column == "topk_logprobs" else value

    found = problems(with_column(shard_table([6, 6, 9]), column, change))
    assert any("above zero" in problem for problem in found), found
    assert column == "token_logprob" or any("sum to one" in problem for problem in found), found


def test_labels_shifted_against_the_tokens_are_reported() -> None:
    """Labels moved by one position disagree with their tokens."""
    table = shard_table([6, 6, 40], k=64)
    for column in ("topk_ids", "topk_logprobs", "tail_logprob"):
        table = with_column(table, column, shift)
    found = list(validate_table(table, vocab_size=100, k=64))
    (shifted,) = [finding for finding in found if finding.kind == "shift"]
    assert "row/2" in shifted.where
    assert "shifted by +1" in shifted.what


def test_labels_that_an_entropy_rule_leaves_out_are_reported() -> None:
    """The first label of a row is kept whatever its entropy."""
    table = shard_table([6, 2, 9, 1], full=True)
    rows = table["entropy"].to_pylist()
    others = [h for row in rows for h in row[1:]]
    lowest, middle = min(others), sorted(others)[len(others) // 2]
    for rule, low in ((lowest, 0), (middle, sum(h < middle * 0.998 for h in others)), (99, 11)):
        found = validate_table(table, vocab_size=100, k=8, keep=f"entropy>{rule:g}")
        texts = [finding.what for finding in found]
        assert len(texts) == (low > 0)
        if low:
            assert f"the rule entropy>{rule:g} leaves out its label ({low} labels in" in texts[0]


def test_a_different_schema_is_reported() -> None:
    assert problems(shard_table([4]).drop_columns(["meta"])) == [
        "the schema is not that of format version 1"
    ]


def test_student_context_must_match_the_spans() -> None:
    table = with_column(
        shard_table([6]), "student_input_ids", lambda v: v.__setitem__(0, [1, 2, 3])
    )
    assert any("go together" in problem for problem in problems(table))
    short = [{"start": 1, "stop": 3, "kind": "text"}]
    table = with_column(table, "student_spans", lambda v: v.__setitem__(0, short))
    assert any("differ in length" in problem for problem in problems(table))
    table = with_column(table, "student_input_ids", lambda v: v.__setitem__(0, [9, 8, 7, 6, 5, 4]))
    whole = [{"start": 1, "stop": 6, "kind": "text"}]
    table = with_column(table, "student_spans", lambda v: v.__setitem__(0, whole))
    assert problems(table) == []


@pytest.mark.parametrize(
    ("spans", "good"),
    [
        ([(1, 4)], True),
        ([(1, 2), (2, 4)], True),
        ([(0, 3)], False),
        ([(2, 2), (2, 4)], False),
        ([(2, 4), (1, 2)], False),
        ([(1, 3)], False),
    ],
)
def test_spans(spans: list[tuple[int, int]], good: bool) -> None:
    rows = [{"start": start, "stop": stop, "kind": "text"} for start, stop in spans]
    assert (span_problem(rows, 4, 3) is None) == good
