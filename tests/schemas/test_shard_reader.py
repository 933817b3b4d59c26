"""The reader of row groups with more shards than it keeps footers for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from schemas import LabelSetError, open_label_set, shard_reader
from tests.schemas.sets import CODECS, varied_set


@pytest.mark.parametrize("codec", CODECS)
def test_evicted_footers_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    path = varied_set(tmp_path / "set", codec)
    labels = open_label_set(path)
    groups = labels.row_groups
    truth = [labels.read_row_group(group) for group in groups]
    monkeypatch.setattr(shard_reader, "SHARDS_KNOWN", 2)
    again = open_label_set(path)
    for turn in (groups, groups[::-1], groups[::2] + groups[1::2]):
        for group in turn:
            assert again.read_row_group(group).equals(truth[groups.index(group)])
            assert len(again.reader._footers) <= 2
    assert len(labels.reader._footers) == 3


def test_a_shard_that_stayed_open_is_opened_again_once_it_changed(tmp_path: Path) -> None:
    labels = open_label_set(varied_set(tmp_path / "set", CODECS[0]))
    first, other = labels.row_groups[0], labels.row_groups[-1]
    truth = labels.read_row_group(first)
    opened = next(iter(labels.reader._idle.values()))
    assert labels.read_row_group(first).equals(truth)
    assert list(labels.reader._idle.values()) == [opened]
    path = labels.path / first.shard
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the old mapping now ends beyond the file
    with pytest.raises(LabelSetError, match="the index says"):
        labels.read_row_group(first)
    path.write_bytes(bytes([data[9] ^ 1]).join([data[:9], data[10:]]))
    with pytest.raises(LabelSetError, match="was altered"):
        labels.read_row_group(first)
    path.unlink()
    with pytest.raises(LabelSetError, match="missing"):
        labels.read_row_group(first)
    path.write_bytes(data)
    assert labels.read_row_group(first).equals(truth)
    assert labels.read_row_group(other).num_rows == other.rows


def test_a_reader_is_pickled_without_open_files(tmp_path: Path) -> None:
    labels = open_label_set(varied_set(tmp_path / "set", CODECS[0]))
    group = labels.row_groups[0]
    truth = labels.read_row_group(group)
    again = pickle.loads(pickle.dumps(labels.reader))
    with again.open(group, "read") as opened:
        assert opened.read(truth.column_names).equals(truth)
