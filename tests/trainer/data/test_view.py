"""The trainer accepts a view in place of a label set: it reads its rows, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from schemas import open_label_set
from schemas.view import write_view
from tests.schemas.sets import view_of
from tests.trainer.conftest import World
from trainer.data.dataset import LabelDataset


def test_a_view_is_read_as_its_rows(world: World, tmp_path: Path) -> None:
    labels = open_label_set(world.labels)
    names: set[str] = set()
    for group in labels.row_groups[1:]:
        chosen = labels.read_row_group(group, ["id"])["id"].to_pylist()
        names |= {f"{name} (chunk 0, sample 0)" for i, name in enumerate(chosen) if i % 3 != 1}
    path = tmp_path / "some.view.json"
    write_view(path, view_of(labels, lambda n, rows: (np.arange(rows) % 3 != 1) & (n > 0)))
    data = LabelDataset(path, pack_tokens=128, window=3)
    packs = list(data)
    read = [key for pack in packs for key in pack.keys]
    assert len(read) == len(set(read))
    assert set(read) == names < {f"{row.id} (chunk 0, sample 0)" for row in world.rows}
    assert sum(pack.n_labels for pack in packs) == open_label_set(path).labels
    assert LabelDataset(path, pack_tokens=128, window=3).count().packs == len(packs)
    view = open_label_set(path).digests
    assert view["content"] != labels.digests["content"], "a run on it is another run"
