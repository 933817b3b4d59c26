"""The reader of row groups with more shards than it keeps footers for."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas import open_label_set, shard_reader
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
