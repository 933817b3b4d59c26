"""The index in columns says what the journal says, and is refused where an entry would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import LabelSetError
from schemas.arrow import INDEX_SCHEMA
from schemas.file_names import shard_name
from schemas.fingerprint import sha256_file, sha256_json
from schemas.index import index_entries, read_index, read_lengths, write_index
from schemas.journal import ByteRange, UnitEntry
from schemas.manifest import FileDigest
from schemas.row_group import Kept, packed_bits
from schemas.row_lengths import lengths_to_text

PAGE = "index/page-000000.parquet"


def entry(unit: int, groups: int) -> UnitEntry:
    """Return an entry with row groups of 10 (unit + 1) bytes each, and a footer of 7."""
    size = 10 * (unit + 1)
    ranges = tuple(
        ByteRange(
            start=n * size,
            stop=(n + 1) * size,
            sha256=sha256_json([unit, n]),
            rows=n + 1,
            labels=100 * unit + n,
            tokens=1000 + n,
        )
        for n in range(groups)
    )
    footer = ByteRange(start=groups * size, stop=groups * size + 7, sha256=sha256_json(unit))
    sums = {name: sum(getattr(r, name) for r in ranges) for name in ("rows", "labels", "tokens")}
    rest = {"rejects": 0, "rejects_sha256": "", "provenance": {}}
    return UnitEntry(
        unit=unit, shard=shard_name(unit), row_groups=ranges, footer=footer, **sums, **rest
    )


ENTRIES = [entry(0, 3), entry(1, 1), entry(2, 0), entry(5, 4)]


def test_the_index_says_what_the_journal_says(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    stored = read_index(tmp_path, write_index(tmp_path, ENTRIES))
    for groups in (stored, index_entries(ENTRIES)):
        expected = [(e.shard, n, r, e.footer) for e in ENTRIES for n, r in enumerate(e.row_groups)]
        assert [(g.shard, g.index, g.bytes, g.footer) for g in groups] == expected
        assert [groups[n] for n in range(-8, 8)] == [*groups, *groups]
        assert groups[2:-1:2] == tuple(groups)[2:-1:2]
        with pytest.raises(IndexError):
            groups[8]
        assert groups.n_shards == 4
        assert groups.shards == tuple(e.shard for e in ENTRIES if e.row_groups)
        assert groups.stored_bytes == sum(e.bytes for e in ENTRIES if e.row_groups)
        assert groups.totals == tuple(
            sum(getattr(e, name) for e in ENTRIES) for name in ("rows", "labels", "tokens")
        )
        assert groups.digest == sha256_json([r.sha256 for e in ENTRIES for r in e.row_groups])
    assert index_entries([]).digest == sha256_json([])


def with_lengths(old: UnitEntry) -> UnitEntry:
    """Return the entry with lengths of rows: 0, then 10 u + 1, 10 u + 2, ... in unit u."""
    groups = []
    for group in old.row_groups:
        lengths = 10 * old.unit + np.arange(group.rows, dtype=np.int32)
        lengths[0] = 0
        groups.append(group.model_copy(update={"lengths": lengths_to_text(lengths)}))
    return UnitEntry(**dict(old) | {"row_groups": tuple(groups)})


def test_lengths_of_rows_are_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of old units are unknown; so are those of a unit that is too long for a page."""
    (tmp_path / "index").mkdir()
    entries = [with_lengths(ENTRIES[0]), ENTRIES[1], ENTRIES[2], with_lengths(ENTRIES[3])]
    expected = [[0], [0, 1], [0, 1, 2], None, [0], [0, 51], [0, 51, 52], [0, 51, 52, 53]]
    stored = read_index(tmp_path, write_index(tmp_path, entries))
    for groups in (stored, index_entries(entries)):
        lengths = read_lengths(groups)
        found = [lengths.of(number) for number in range(len(groups))]
        assert [None if each is None else each.tolist() for each in found] == expected
        assert [group.bytes for group in groups] == [r for e in ENTRIES for r in e.row_groups]
    bits = packed_bits(np.array([True, False, True]))
    sha256 = sha256_json([5, 2])
    kept = Kept(
        shard=shard_name(5), row_group=2, sha256=sha256, rows=2, labels=0, tokens=3, bits=bits
    )
    view = read_lengths(stored.keep([kept])).of(0)
    assert view is not None
    assert view.tolist() == [0, 52]
    monkeypatch.setattr("schemas.index.ROWS_PER_PAGE", 7)  # units have 6, 1, 0 and 10 rows
    pages = write_index(tmp_path, entries)
    assert len(pages) == 2
    lengths = read_lengths(read_index(tmp_path, pages))
    known = [lengths.of(number) is not None for number in range(8)]
    assert known == [True] * 3 + [False] * 5
    assert pq.read_schema(tmp_path / pages[1].path).equals(INDEX_SCHEMA)


def test_lengths_of_an_altered_page_are_refused(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    groups = read_index(tmp_path, write_index(tmp_path, [with_lengths(ENTRIES[0])]))
    data = bytearray((tmp_path / PAGE).read_bytes())
    data[100] ^= 1
    (tmp_path / PAGE).write_bytes(data)
    with pytest.raises(LabelSetError, match="altered since the set was opened"):
        read_lengths(groups)


@pytest.mark.parametrize("lengths", ["", "AAAA", "AAAAAAAAAAA=", "AAAA////", "/////w==", "%"])
def test_a_journal_entry_with_lengths_of_other_rows_is_refused(lengths: str) -> None:
    group = ENTRIES[1].row_groups[0].model_copy(update={"lengths": lengths})
    with pytest.raises(ValueError, match=r"lengths of 1 rows|base64|padding"):
        UnitEntry(**dict(ENTRIES[1]) | {"row_groups": (group,)})


def test_a_view_keeps_row_groups_by_name_and_hash() -> None:
    groups = index_entries(ENTRIES)

    def kept(shard: int, number: int, **changes: Any) -> Kept:
        bits = {"sha256": sha256_json([shard, number]), "bits": packed_bits([True])}
        sizes = {"rows": 1, "labels": 0, "tokens": 3}
        name = shard_name(shard)
        return Kept(**{"shard": name, "row_group": number, **bits, **sizes, **changes})

    chosen = [kept(5, 3), kept(0, 1)]
    view = groups.keep(chosen)
    assert [(group.shard, group.index, group.kept) for group in view] == [
        (each.shard, each.row_group, each) for each in chosen
    ]
    assert view.totals == (2, 0, 6)
    hashes = [each.sha256 for each in chosen]
    assert view.digest == sha256_json([*hashes, [each.bits for each in chosen]])
    assert groups.keep([]).digest == sha256_json([])
    for wrong in (kept(5, 4), kept(2, 0), kept(3, 0), kept(0, 0, sha256="0" * 64)):
        with pytest.raises(ValueError, match="has changed since the view was made"):
            groups.keep([wrong])
    for name in ("rows", "labels", "tokens"):
        with pytest.raises(ValueError, match=f"{shard_name(0)}, row group 0"):
            groups.keep([kept(0, 0, **{name: 5000})])


def changed(row: int, **values: object) -> Callable[[list[dict[str, object]]], None]:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.pop(), "no footer"),
        (lambda rows: rows.pop(0), "out of order"),
        (lambda rows: rows.pop(1), "out of order"),
        (lambda rows: rows.pop(3), "another unit"),
        (lambda rows: rows.insert(1, rows[1]), "out of order"),
        (lambda rows: rows.extend(rows[:4]), "twice"),
        (changed(0, row_group=-1), "out of order"),
        (changed(0, unit=-1), "another unit"),
        (changed(1, shard=shard_name(7)), "shard"),
        (changed(1, shard="shards/../../part-000000.parquet"), "shard"),
        (changed(1, start=11), "do not follow"),
        (changed(0, start=1), "do not follow"),
        (changed(1, stop=10), "no bytes|do not follow"),
        (changed(3, stop=30), "no bytes"),
        (changed(0, rows=11), "more rows than bytes"),
        (changed(0, labels=-1), "not possible"),
        (changed(0, tokens=1 << 60), "not possible"),
        (changed(0, sha256="0" * 63), "not a hash"),
        (changed(0, sha256="0" * 63 + "G"), "not a hash"),
        (changed(0, sha256="0" * 64 + "\n"), "not a hash"),
    ],
)
def test_a_page_that_breaks_a_rule_is_refused(
    change: Callable[[list[dict[str, object]]], None], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "index").mkdir()
    write_index(tmp_path, ENTRIES)
    rows = pq.read_table(tmp_path / PAGE).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), tmp_path / PAGE)
    digest = FileDigest(path=PAGE, sha256=sha256_file(tmp_path / PAGE))
    with pytest.raises(LabelSetError, match=reason):
        read_index(tmp_path, [digest])


def test_a_unit_of_two_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (page,) = write_index(tmp_path, ENTRIES)
    with pytest.raises(LabelSetError, match="a unit occurs twice"):
        read_index(tmp_path, [page, page])
