"""Views stand in for a label set anywhere, with exactly the rows that they keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from schemas import LabelSet, LabelSetError, decode, open_label_set
from schemas.row_group import packed_bits
from schemas.view import View, write_view
from tests.schemas.sets import view_of

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = sorted(path for path in GOLDEN.iterdir() if (path / "manifest.json").is_file())


def every_other(labels: LabelSet, path: Path, *, first: int = 0) -> Path:
    """Write a view of every other row of a set, without its last row group."""
    last = len(labels.row_groups) - 1
    write_view(path, view_of(labels, lambda n, rows: (np.arange(rows) % 2 == first) & (n < last)))
    return path


@pytest.mark.parametrize("golden", SETS, ids=lambda path: path.name)
def test_a_view_is_read_as_a_label_set_of_its_rows(golden: Path, tmp_path: Path) -> None:
    whole = open_label_set(golden)
    view = open_label_set(every_other(whole, tmp_path / "half.view.json"))
    expected = [
        name
        for group in whole.row_groups[:-1]
        for name in whole.read_row_group(group, ["id"])["id"].to_pylist()[::2]
    ]
    tables = [view.read_row_group(group) for group in view.row_groups]
    assert [name for table in tables for name in table["id"].to_pylist()] == expected
    assert view.rows == len(expected) < whole.rows
    assert view.labels == sum(len(decode(table).labels) for table in tables)
    assert view.tokens == sum(sum(table["n_tokens"].to_pylist()) for table in tables)
    assert view.content_digest != whole.content_digest
    other = open_label_set(every_other(whole, tmp_path / "other.view.json", first=1))
    assert other.content_digest != view.content_digest


def test_an_altered_view_is_refused(tmp_path: Path) -> None:
    path = every_other(open_label_set(SETS[0]), tmp_path / "a.view.json")
    content = json.loads(path.read_text())
    content["kept"][0]["rows"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(LabelSetError, match="the view was altered"):
        open_label_set(path)
    path.write_text("{}")
    with pytest.raises(LabelSetError, match="not a view"):
        open_label_set(path)


def test_a_view_of_a_set_that_changed_is_refused(tmp_path: Path) -> None:
    """Bits that would select other rows must be refused."""
    a = tmp_path / "a"
    shutil.copytree(SETS[0], a)
    labels = open_label_set(a)
    path = every_other(labels, tmp_path / "a.view.json")
    content = View.model_validate_json(path.read_text())
    other = content.kept[0].model_copy(update={"sha256": "0" * 64})
    write_view(path, content.model_copy(update={"kept": (other, *content.kept[1:])}))
    with pytest.raises(LabelSetError, match="has changed since the view was made"):
        open_label_set(path)
    write_view(path, content.model_copy(update={"identity_digest": "0" * 64}))
    with pytest.raises(LabelSetError, match="belongs to a different label set"):
        open_label_set(path)
    write_view(path, content.model_copy(update={"label_set": "nowhere"}))
    with pytest.raises(LabelSetError, match="no label set here"):
        open_label_set(path)


def test_bits_for_a_different_number_of_rows_are_refused(tmp_path: Path) -> None:
    labels = open_label_set(SETS[0])
    path = every_other(labels, tmp_path / "a.view.json")
    view = View.model_validate_json(path.read_text())
    longer = view.kept[0].model_copy(update={"bits": packed_bits(np.ones(99, bool))})
    write_view(path, view.model_copy(update={"kept": (longer,)}))
    opened = open_label_set(path)
    with pytest.raises(LabelSetError, match="do not fit"):
        opened.read_row_group(opened.row_groups[0])
