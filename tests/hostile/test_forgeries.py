"""Sets whose hashes are right and whose content is not: findings, never a traceback (row 14).

What a student would be trained on wrongly, the trainer's reader refuses as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import open_label_set
from tests.hostile.sealed import (
    Json,
    findings,
    read_json,
    refoot,
    reidentify,
    reseal,
    rewrite_rows,
    trained_on,
    write_index_page,
    write_json,
)
from tests.labeler.command_line import CommandLine
from tests.schemas.sets import GOLDEN

ROOT = Path(__file__).parents[2]

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "labels")
    return tmp_path / "labels"


def column(name: str, change: Callable[[Any], Any], kind: pa.DataType | None = None) -> Change:
    """Return a change of one column's values, as Python objects."""

    def apply(table: pa.Table) -> pa.Table:
        at, field = table.column_names.index(name), table.schema.field(name)
        if kind is not None:
            field = pa.field(name, kind)
        values = pa.array([change(value) for value in table[name].to_pylist()], field.type)
        return table.set_column(at, field, values)

    return apply


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def first_span(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda spans: [spans[0] | changes, *spans[1:]]


def in_first_list(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda lists: [[value, *lists[0][1:]], *lists[1:]]


WRONG_TO_TRAIN_ON: dict[str, Change] = {
    "a tail of +5 nats": column("tail_logprob", first(5.0)),
    "a tail of NaN": column("tail_logprob", first(float("nan"))),
    "a tail of +inf": column("tail_logprob", first(float("inf"))),
    "a tail that makes the mass 1.4": column("tail_logprob", first(-0.9)),
    "a probability above 1": column("topk_logprobs", in_first_list(0.5)),
    "a probability of NaN": column("topk_logprobs", in_first_list(float("nan"))),
    "a token above 1": column("token_logprob", first(1.0)),
    "a token of NaN": column("token_logprob", first(float("nan"))),
    "a short tail": column("tail_logprob", lambda values: values[:-1]),
    "a long tail": column("tail_logprob", lambda values: [*values, -1.0]),
    "a short list of tokens": column("token_logprob", lambda values: values[:-1]),
    "a short list of ids": column("topk_ids", lambda lists: lists[:-1]),
    "one id less": column("topk_ids", lambda lists: [lists[0][:-1], *lists[1:]]),
    "an id past the vocabulary": column("topk_ids", in_first_list(65_000)),
    "an id twice": column("topk_ids", lambda lists: [[lists[0][1], *lists[0][1:]], *lists[1:]]),
    "more ids than k": column("topk_ids", lambda lists: [[*range(200)], *lists[1:]]),
    "a null in a list": column("topk_ids", in_first_list(None)),
    "a null in the tokens": column("input_ids", first(None)),
    "a token past the vocabulary": column("input_ids", first(2**31 - 1)),
    "a negative token": column("input_ids", first(-1)),
    "fewer tokens": column("input_ids", lambda ids: ids[:2]),
    "no tokens": column("input_ids", lambda _: []),
    "a span that starts at 0": column("spans", first_span(start=0)),
    "a span that starts before": column("spans", first_span(start=-5)),
    "a span past the end": column("spans", first_span(stop=10**6)),
    "a span of two billion": column("spans", first_span(stop=2**31 - 1)),
    "a span backwards": column("spans", first_span(start=9, stop=2)),
    "a span twice": column("spans", lambda spans: [*spans, spans[-1]]),
    "no spans": column("spans", lambda _: []),
    "a null span": column("spans", lambda spans: [None, *spans]),
    "an unknown kind": column("spans", first_span(kind="evil")),
    "a kind that is no text": column(
        "spans", first_span(kind="\udce2".encode(errors="ignore").decode())
    ),
    "n_labels too large": column("n_labels", lambda n: n + 1),
    "n_labels negative": column("n_labels", lambda n: -n),
    "a student without spans": column("student_input_ids", lambda _: [1, 2, 3]),
    "ids as text": column("topk_ids", lambda _: "x", pa.string()),
    "tails as doubles": column("tail_logprob", lambda v: v, pa.list_(pa.float64())),
    "no column of tails": lambda table: table.drop_columns(["tail_logprob"]),
    "one more column": lambda table: table.append_column("x", pa.array([1] * table.num_rows)),
    "columns in another order": lambda table: table.select(table.column_names[::-1]),
    "fewer rows": lambda table: table.slice(0, 0),
}


@pytest.mark.parametrize("name", WRONG_TO_TRAIN_ON)
def test_neither_verify_nor_the_trainer_takes_it(name: str, labels: Path) -> None:
    rewrite_rows(labels, WRONG_TO_TRAIN_ON[name])
    assert findings(labels)
    if name != "fewer rows":
        assert trained_on(labels)


def not_utf8(labels: Path) -> None:
    rewrite_rows(labels, lambda table: with_bytes(table, "id", b"\xff\xfe"))


def with_bytes(table: pa.Table, name: str, value: bytes) -> pa.Table:
    data = pa.array([value] * table.num_rows, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(name), text)


def swapped_shards(labels: Path) -> None:
    one, two = labels / "shards/part-000000.parquet", labels / "shards/part-000001.parquet"
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    reseal(labels)


def facts(change: Callable[[Json], Json]) -> Callable[[Path], None]:
    def forge(labels: Path) -> None:
        refoot(labels / "shards/part-000000.parquet", change)
        reseal(labels)

    return forge


def manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda labels: reseal(labels, manifest=lambda content: content | changes)


def entry(**changes: Any) -> Callable[[Path], None]:
    def forge(labels: Path) -> None:
        file = labels / "journal/unit-000000.json"
        write_json(file, read_json(file) | changes)

    return forge


def index(change: Callable[[list[Json]], list[Json]]) -> Callable[[Path], None]:
    def forge(labels: Path) -> None:
        rows = pq.read_table(labels / "index/page-000000.parquet").to_pylist()
        write_index_page(labels, change(rows))
        reseal(labels)

    return forge


def text(name: str, content: str) -> Callable[[Path], None]:
    def forge(labels: Path) -> None:
        (labels / name).write_text(content)
        reseal(labels)

    return forge


def emptied(name: str) -> Callable[[Path], None]:
    return text(name, "")


def rejects_of_other_columns(labels: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), labels / "journal/unit-000000.rejects.parquet")
    reseal(labels)


def plan_of_other_columns(labels: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), labels / "plan.parquet")
    reseal(labels)


FORGERIES: dict[str, Callable[[Path], None]] = {
    "an id that is not UTF-8": not_utf8,
    "swapped shards": swapped_shards,
    "facts that are no object": facts(lambda _: {}),
    "facts without a codec": facts(lambda f: {n: v for n, v in f.items() if n != "codec"}),
    "facts of another vocabulary": facts(lambda f: f | {"vocab_size": 10}),
    "facts without a tail source": facts(lambda f: f | {"tail_source": None}),
    "a negative number of units": manifest(planned_units=-1),
    "more units": manifest(planned_units=4),
    "a trillion units": manifest(planned_units=10**12),
    "no index": manifest(index_pages=[]),
    "no tokenizer": manifest(tokenizer_files=[]),
    "other totals": manifest(totals={"units": 3, "rows": 1, "tokens": 1, "labels": 1}),
    "provenance of another kind": manifest(provenance=[1]),
    "an unknown version": manifest(format_version="9.0"),
    "an unknown codec": manifest(codec="evil/1"),
    "a vocabulary of none": lambda labels: reidentify(labels, vocab_size=0),
    "a smaller vocabulary": lambda labels: reidentify(labels, vocab_size=3),
    "a larger vocabulary": lambda labels: reidentify(labels, vocab_size=70_000),
    "a smaller k": lambda labels: reidentify(labels, k=1),
    "an entry without an engine": entry(provenance={}),
    "an entry with an endless time": entry(
        provenance={"engine": "", "engine_version": "", "device": "", "engine_seconds": 1e308}
    ),
    "an entry of another unit": entry(unit=1),
    "an entry of other rows": entry(row_groups=[]),
    "an index without a footer": index(lambda rows: [r for r in rows if r["row_group"] != -1]),
    "an index of one unit": index(lambda rows: [row for row in rows if row["unit"] == 0]),
    "an index with a unit twice": index(lambda rows: [*rows, *rows]),
    "an index backwards": index(lambda rows: rows[::-1]),
    "an index of more rows": index(lambda rows: [r | {"rows": 2 * r["rows"]} for r in rows]),
    "an index of negative labels": index(lambda rows: [r | {"labels": -1} for r in rows]),
    "an index that overlaps": index(lambda rows: [r | {"start": 0} for r in rows]),
    "a tokenizer that is no JSON": text("tokenizer/tokenizer.json", "{"),
    "a tokenizer that is a list": text("tokenizer/tokenizer.json", "[]"),
    "a deep tokenizer": text("tokenizer/tokenizer.json", "[" * 10**5 + "]" * 10**5),
    "an empty tokenizer": emptied("tokenizer/tokenizer.json"),
    "an empty plan": emptied("plan.parquet"),
    "an empty ledger": emptied("ledger.json"),
    "another ledger": text("ledger.json", '{"engines": {}}'),
    "empty rejects": emptied("journal/unit-000000.rejects.parquet"),
    "rejects of other columns": rejects_of_other_columns,
    "a plan of other columns": plan_of_other_columns,
    "an empty shard": emptied("shards/part-000000.parquet"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_verify_finds_it_and_never_raises(name: str, labels: Path) -> None:
    FORGERIES[name](labels)
    assert findings(labels)
    trained_on(labels)  # raises nothing but what it returns


def test_the_tools_change_nothing_by_themselves(labels: Path) -> None:
    reseal(labels)
    rewrite_rows(labels, lambda table: table)
    assert findings(labels) == []
    assert trained_on(labels) is None
    assert open_label_set(labels).rows == 5


@pytest.mark.parametrize(
    "provenance",
    [{"chat_template": 5}, {"chat_template": {"text": 5, "arguments": []}}, {"derived": []}, {}],
)
def test_the_command_ends_in_findings_whatever_the_provenance_is(
    provenance: Json, labels: Path, labeler: CommandLine
) -> None:
    reidentify(labels, chat_template="0" * 64)
    reseal(labels, manifest=lambda content: content | {"provenance": provenance})
    for command in (["verify", labels], ["inspect", labels], ["repair", labels, "--dry-run"]):
        done = labeler(*command)
        assert done.code in (0, 1, 2)
        assert "Traceback" not in done.err + done.out
