"""Journal entries merged into batches: read like single ones, at any moment of the merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas import LabelSetError, journal, journal_batches, open_label_set, set_files
from schemas.file_names import batch_name, entry_name, rejects_name
from schemas.journal import (
    compact_journal,
    forget_unit,
    journaled_units,
    read_entries,
    read_entry,
    unit_rejects,
    write_entry,
)
from schemas.set_files import declared_files, extra_files
from tests.schemas.sets import varied_set

UNITS = 3


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete set of three units, where two make a batch."""
    for module in (journal, journal_batches, set_files):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr("schemas.file_names.BATCH", 2)
    return varied_set(tmp_path / "labels", "plain/1")


def names(labels: Path) -> list[str]:
    return sorted(path.name for path in (labels / "journal").iterdir())


def test_a_full_batch_becomes_one_file(labels: Path) -> None:
    entries, digest = read_entries(labels, UNITS), open_label_set(labels).content_digest
    rejects = [unit_rejects(labels, unit) for unit in range(UNITS)]
    assert compact_journal(labels, UNITS) == 1
    assert names(labels) == [
        "unit-000002.json",
        "unit-000002.rejects.parquet",
        "units-000000.parquet",
    ]
    assert read_entries(labels, UNITS) == entries
    assert [unit_rejects(labels, unit) for unit in range(UNITS)] == rejects
    opened = open_label_set(labels)
    assert opened.content_digest == digest
    assert {batch_name(0), entry_name(2), rejects_name(2)} <= set(declared_files(opened))
    assert entry_name(0) not in declared_files(opened)
    assert list(extra_files(opened)) == []
    assert compact_journal(labels, UNITS) == 0


def test_a_crash_between_merge_and_delete_does_no_harm(
    labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = read_entries(labels, UNITS)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _killed)
        with pytest.raises(KeyboardInterrupt):
            compact_journal(labels, UNITS)
    assert {"units-000000.parquet", "unit-000000.json", "unit-000001.json"} <= set(names(labels))
    assert read_entries(labels, UNITS) == entries
    assert compact_journal(labels, UNITS) == 0  # only the deletions were left
    assert "unit-000000.json" not in names(labels)
    assert read_entries(labels, UNITS) == entries


def _killed(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_a_unit_that_is_made_again_replaces_the_one_in_its_batch(labels: Path) -> None:
    entry = read_entry(labels, 1)
    assert entry is not None
    compact_journal(labels, UNITS)
    assert forget_unit(labels, 1)
    assert not forget_unit(labels, 1)
    assert journaled_units(labels) == [0, 2]
    again = entry.model_copy(update={"provenance": entry.provenance | {"device": "another"}})
    journal.write_rejects(journal.rejects_path(labels, 1), [])
    write_entry(labels, again)
    assert journaled_units(labels) == [0, 1, 2]
    assert compact_journal(labels, UNITS) == 1
    assert read_entry(labels, 1) == again.sealed()
    assert forget_unit(labels, 0)
    assert forget_unit(labels, 1)
    assert names(labels) == ["unit-000002.json", "unit-000002.rejects.parquet"]


def test_an_altered_batch_is_refused(labels: Path) -> None:
    compact_journal(labels, UNITS)
    path = labels / batch_name(0)
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    with pytest.raises(LabelSetError, match="the journal's batch cannot be read"):
        read_entry(labels, 0)


def test_the_last_units_stay_alone(labels: Path) -> None:
    forget_unit(labels, 0)
    assert compact_journal(labels, UNITS) == 0
    assert compact_journal(labels, 1) == 0
    assert not (labels / batch_name(2)).exists()
