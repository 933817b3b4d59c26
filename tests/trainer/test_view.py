"""The trainer takes a view of a label set in place of the set: its rows, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from schemas import open_label_set
from schemas.view import Kept, View, packed_bits, write_view
from tests.trainer.conftest import World
from trainer.dataset import LabelDataset, label_set_digests


def test_a_view_is_read_as_its_rows(world: World, tmp_path: Path) -> None:
    labels = open_label_set(world.labels)
    kept, names = [], set()
    for group in labels.row_groups[1:]:
        rows = labels.read_row_group(group, ["id", "n_labels", "n_tokens"])
        mask = np.arange(group.rows) % 3 != 1
        chosen = rows.filter(mask)
        names |= {f"{name} (chunk 0, sample 0)" for name in chosen["id"].to_pylist()}
        kept.append(
            Kept(
                shard=group.shard,
                row_group=group.index,
                sha256=group.bytes.sha256,
                rows=chosen.num_rows,
                labels=sum(chosen["n_labels"].to_pylist()),
                tokens=sum(chosen["n_tokens"].to_pylist()),
                bits=packed_bits(mask),
            )
        )
    path = tmp_path / "some.view.json"
    identity = labels.manifest.identity_digest
    place = str(world.labels.absolute())
    write_view(path, View(label_set=place, identity_digest=identity, kept=tuple(kept), made={}))
    data = LabelDataset(path, pack_tokens=128, window=3)
    packs = list(data)
    read = [key for pack in packs for key in pack.keys]
    assert len(read) == len(set(read))
    assert set(read) == names < {f"{row.id} (chunk 0, sample 0)" for row in world.rows}
    assert sum(pack.n_labels for pack in packs) == open_label_set(path).labels
    assert LabelDataset(path, pack_tokens=128, window=3).count().packs == len(packs)
    view = label_set_digests(open_label_set(path))
    assert view["content"] != label_set_digests(labels)["content"], "a run on it is another run"
