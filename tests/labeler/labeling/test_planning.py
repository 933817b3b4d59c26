from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.planning.cut import Planned, Rules, plan_units
from labeler.labeling.planning.plan_spool import open_spool
from labeler.labeling.rendering.render import Sequence
from labeler.labeling.rendering.spans import Span
from schemas import SoftshardsError


def sequence(name: str, tokens: int = 10, chunk: int = 0) -> Sequence:
    return Sequence(
        id=name,
        chunk=chunk,
        source="f",
        meta=None,
        prompt=None,
        input_ids=list(range(tokens)),
        spans=(Span(start=1, stop=tokens, kind="text"),),
        n_labels=tokens - 1,
    )


def planned(
    folder: Path,
    items: Iterable[Sequence | Reject],
    rules: Rules | None = None,
    known: Iterable[Sequence] = (),
) -> tuple[Planned, list[pa.Table], list[Reject]]:
    with open_spool(folder / "spool") as rows:
        done = plan_units(items, rules or Rules(seed=0, unit_labels=45), rows, known=known)
        return done, list(done.tables()), list(done.all_rejects())


def plan(folder: Path, items: Iterable[Sequence | Reject], seed: int = 0) -> list[list[str]]:
    done, units, _ = planned(folder, items, Rules(seed=seed, unit_labels=45))
    assert done.units == len(units)
    assert done.rows == sum(unit.num_rows for unit in units)
    return [unit["id"].to_pylist() for unit in units]


def test_the_cut_depends_on_keys_and_seed_not_on_input_order(tmp_path: Path) -> None:
    rows = [sequence(f"r{i}") for i in range(40)]
    assert plan(tmp_path, list(rows)) == plan(tmp_path, list(reversed(rows)))
    assert plan(tmp_path, list(rows)) != plan(tmp_path, list(rows), seed=1)
    assert {name for unit in plan(tmp_path, list(rows)) for name in unit} == {r.id for r in rows}
    assert [len(unit) for unit in plan(tmp_path, list(rows))] == [5] * 8


def test_the_cut_is_the_sorted_list_of_hashes_cut_in_order(tmp_path: Path) -> None:
    """Written out in memory: older sets can be gone on with only if this never changes."""
    rows = [sequence(f"r{i % 50}", 5 + i % 9, chunk=i // 50) for i in range(150)]
    key = {(r.id, r.chunk): hashlib.sha256(f"7\0{r.id}\0{r.chunk}".encode()).digest() for r in rows}
    expected: list[list[Sequence]] = [[]]
    for row in sorted(rows, key=lambda r: key[r.id, r.chunk]):
        if expected[-1] and sum(r.n_labels for r in expected[-1]) + row.n_labels > 60:
            expected.append([])
        expected[-1].append(row)
    done, units, _ = planned(tmp_path, rows, Rules(seed=7, unit_labels=60))
    assert [unit["unit"].unique().to_pylist() for unit in units] == [[n] for n in range(done.units)]
    for unit, rows_of_it in zip(units, expected, strict=True):
        ordered = sorted(rows_of_it, key=lambda r: (-len(r.input_ids), r.id, r.chunk))
        assert unit["id"].to_pylist() == [r.id for r in ordered]
        assert unit["chunk"].to_pylist() == [r.chunk for r in ordered]
        assert unit["input_ids"].to_pylist() == [r.input_ids for r in ordered]
    assert (done.n_tokens, done.n_labels) == (
        sum(len(r.input_ids) for r in rows),
        sum(r.n_labels for r in rows),
    )
    assert done.records == 150  # the chunks of these ids do not come together


def test_units_are_no_prefix_of_the_input(tmp_path: Path) -> None:
    """A unit is a sample of the whole input, so that a partial set is an unbiased one."""
    first = plan(tmp_path, [sequence(f"r{i:03d}") for i in range(400)])[:10]
    numbers = [int(name[1:]) for unit in first for name in unit]
    assert 130 < sum(numbers) / len(numbers) < 270


def test_long_rows_come_first_inside_a_unit(tmp_path: Path) -> None:
    rows = [sequence(f"r{i}", 2 + i) for i in range(8)]
    _, (unit,), _ = planned(tmp_path, rows, Rules(seed=0, unit_labels=1000))
    assert unit["n_tokens"].to_pylist() == sorted(unit["n_tokens"].to_pylist(), reverse=True)


def test_a_row_larger_than_a_unit_gets_its_own(tmp_path: Path) -> None:
    big = [sequence("big", 200), sequence("big2", 200)]
    assert [len(unit) for unit in plan(tmp_path, big)] == [1, 1]


def test_repeated_id_is_a_reject(tmp_path: Path) -> None:
    done, _, rejects = planned(tmp_path, [sequence("a"), sequence("a", 20)])
    assert (done.rows, done.n_tokens, done.rejects) == (1, 10, 1)
    assert [r.reason for r in rejects] == ["id occurs twice"]


def test_rows_that_the_set_has_are_left_out_and_others_of_their_id_rejected(
    tmp_path: Path,
) -> None:
    rows = [sequence("old"), sequence("other", 12), sequence("new")]
    done, (unit,), rejects = planned(
        tmp_path, rows, known=[sequence("old"), sequence("other"), sequence("gone")]
    )
    assert unit["id"].to_pylist() == ["new"]
    assert (done.known, done.rows) == (1, 1)
    assert [(r.id, r.reason) for r in rejects] == [
        ("other", "the label set has another record of this id")
    ]
    done, units, _ = planned(tmp_path, [sequence("old")], known=[sequence("old")])
    assert (done.known, done.units, units) == (1, 0, [])


def test_nothing_to_label_says_why(tmp_path: Path) -> None:
    reject = Reject(id="f:3", source="f", reason="line 4 is not JSON")
    with pytest.raises(SoftshardsError, match="line 4 is not JSON"):
        plan(tmp_path, [reject])
    with pytest.raises(SoftshardsError, match="no usable record"):
        plan(tmp_path, [])
    with pytest.raises(SoftshardsError, match="f:3"):
        planned(tmp_path, [sequence("a"), reject], Rules(seed=0, unit_labels=9, strict=True))
    assert list(tmp_path.iterdir()) == [], "the spool is deleted however planning ends"


def test_too_many_rejects_end_planning_early(tmp_path: Path) -> None:
    read = []

    def records() -> Iterator[Sequence | Reject]:
        for number in range(100_000):
            read.append(number)
            bad = Reject(id=f"f:{number}", source="f", reason="no text")
            yield bad if number % 2 else sequence(f"f:{number}")

    rules = Rules(seed=0, unit_labels=45, max_reject_share=0.4)
    with pytest.raises(SoftshardsError, match="more than --max-reject-share") as caught:
        planned(tmp_path, records(), rules)
    assert "f:1" in str(caught.value)
    assert len(read) == 100

    few = [sequence("a"), Reject(id="b", source="f", reason="no text")]
    with pytest.raises(SoftshardsError, match="1 of 2 records are bad"):
        planned(tmp_path, few, rules)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def plan_on_a_small_disk() -> None:
        with open_spool(tmp_path / "spool") as rows:
            rows._db.execute("PRAGMA max_page_count = 40")
            items = (sequence(f"r{i}", 500) for i in range(10_000))
            plan_units(items, Rules(seed=0, unit_labels=9), rows)

    with pytest.raises(SoftshardsError, match=r"disk is full(.|\n)*free some space"):
        plan_on_a_small_disk()
    assert list(tmp_path.iterdir()) == []


def peak_of_planning(folder: Path, rows: int) -> int:
    """Peak bytes that Python and SQLite hold while `rows` rows are planned and read back.

    SQLite's own memory is not Python's: its high-water mark is bounded by the cache, which
    `test_the_spool_keeps_its_cache_small` checks.
    """
    tracemalloc.start()
    items = (sequence(f"r{i}", 300) for i in range(rows))
    with open_spool(folder / "spool") as held:
        done = plan_units(items, Rules(seed=0, unit_labels=3000), held)
        for _ in done.tables():
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_stays_flat_over_ten_times_the_rows(tmp_path: Path) -> None:
    few, many = peak_of_planning(tmp_path, 300), peak_of_planning(tmp_path, 3000)
    assert many < 1.5 * few
    held = [sequence(f"r{i}", 300) for i in range(3000)]
    assert many < 300 * 8 * len(held) / 2, "less than half of their token ids in lists"


def test_the_spool_keeps_its_cache_small(tmp_path: Path) -> None:
    with open_spool(tmp_path / "spool") as rows:
        assert rows._db.execute("PRAGMA cache_size").fetchone()[0] == -2048
        assert rows._db.execute("PRAGMA journal_mode").fetchone()[0] == "off"
        for number in range(2000):
            rows.add(hashlib.sha256(str(number).encode()).digest(), sequence(str(number), 2000))
        spilled = (tmp_path / "spool").stat().st_size
    assert spilled > 2000 * 2000, "rows are in the file before anybody commits"
