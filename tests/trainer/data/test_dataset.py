from __future__ import annotations

import shutil
import threading
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from schemas.arrow import SPAN_KINDS
from tests.trainer.build_label_set import Row, build_label_set
from tests.trainer.conftest import World
from trainer.data import load_windows
from trainer.data.dataset import LabelDataset, Pack, ReaderState
from trainer.data.mixture import EpochOrder, Part, epoch_order
from trainer.data.window import Window, decode_window


def dataset(labels: Any, **settings: Any) -> LabelDataset:
    return LabelDataset(labels, **({"pack_tokens": 128, "window": 3, "epochs": 2} | settings))


def names(packs: Any) -> list[list[str]]:
    return [pack.keys for pack in packs]


def test_each_epoch_has_every_row_once(world: World) -> None:
    packs = list(dataset(world.labels))
    counts = Counter(key for pack in packs for key in pack.keys)
    assert set(counts.values()) == {2}
    assert len(counts) == len(world.rows)
    assert names(packs) == names(dataset(world.labels))
    assert names(packs) != names(dataset(world.labels, seed=1))


def test_rows_come_with_their_own_tokens_and_positions(world: World) -> None:
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    for pack in dataset(world.labels, epochs=1):
        window = pack.window
        for key, row in zip(pack.keys, pack.rows):
            tokens = window.tokens[window.token_offsets[row] : window.token_offsets[row + 1]]
            here = slice(window.label_offsets[row], window.label_offsets[row + 1])
            expected = rows[key]
            assert tokens.tolist() == expected.input_ids
            assert window.positions[here].tolist() == [
                t for start, stop, _ in expected.spans for t in range(start, stop)
            ]
            assert [SPAN_KINDS[kind] for kind in window.kinds[here]] == [
                kind for start, stop, kind in expected.spans for _ in range(start, stop)
            ]


def test_counts_agree_with_reading(world: World) -> None:
    packs = list(dataset(world.labels))
    count = dataset(world.labels).count()
    assert count.packs == len(packs)
    assert count.tokens == sum(pack.n_tokens for pack in packs)
    assert count.fill == count.tokens / (128 * len(packs))


def test_steps_are_counted_without_shards(world: World, tmp_path: Path) -> None:
    """The lengths of rows are in the index, in the student's context."""
    path = tmp_path / "labels"
    shutil.copytree(world.folder, path)
    expected = dataset(world.labels).count()
    labels = open_label_set(path)
    shutil.rmtree(path / "shards")
    assert dataset(labels).count() == expected


def test_any_state_resumes_the_same_sequence(world: World) -> None:
    packs = list(dataset(world.labels))
    for done in range(len(packs)):
        state = ReaderState.from_dict(packs[done].state.to_dict())
        assert names(dataset(world.labels, state=state)) == names(packs[done + 1 :])


def test_resume_reads_only_the_window_it_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = list(dataset(world.labels))
    last = max(pack.state.window for pack in packs)
    state = next(p.state for p in packs if p.state.epoch == 1 and p.state.window == last)
    read: list[int] = []
    original = LabelSet.read_row_group

    def counting(self: LabelSet, group: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(group.index)
        return original(self, group, *args, **kwargs)

    monkeypatch.setattr(LabelSet, "read_row_group", counting)
    list(dataset(world.labels, state=state))
    assert len(read) <= 3


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_stride_one_global_sequence(world: World, world_size: int) -> None:
    everything = names(dataset(world.labels))
    for rank in range(world_size):
        mine = list(dataset(world.labels, rank=rank, world_size=world_size))
        assert names(mine) == everything[rank::world_size]


def test_state_carries_over_to_another_world_size(world: World) -> None:
    everything = names(dataset(world.labels))
    for rounds in (1, 3, 5):
        ranks = [dataset(world.labels, rank=rank, world_size=2) for rank in range(2)]
        for rank in ranks:
            for _ in islice(rank, rounds):
                pass
        for rank in ranks:
            resumed = dataset(world.labels, state=rank.state)
            assert names(resumed) == everything[2 * rounds :]


def test_reader_thread_stays_at_most_one_window_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []

    def decode(table: pa.Table, **settings: Any) -> Window:
        loaded.append(table.num_rows)
        assert threading.current_thread() is not threading.main_thread()
        return decode_window(table, **settings)

    monkeypatch.setattr(load_windows, "decode_window", decode)
    packs = iter(dataset(world.labels))
    next(packs)
    assert len(loaded) <= 2
    packs.close()  # type: ignore[attr-defined]


def test_the_row_groups_of_an_epoch_are_ordered_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []

    def order(parts: tuple[Part, ...], seed: int, epoch: int) -> EpochOrder:
        epochs.append(epoch)
        return epoch_order(parts, seed, epoch)

    monkeypatch.setattr(load_windows, "epoch_order", order)
    packs = list(dataset(world.labels, epochs=2, window=1))
    assert len({(pack.state.epoch, pack.state.window) for pack in packs}) > 4
    assert epochs == [0, 1]


def altered(world: World, tmp_path: Path) -> Path:
    path = tmp_path / "labels"
    shutil.copytree(world.folder, path)
    shard = path / "shards" / "part-000001.parquet"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    return path


def test_error_in_the_reader_thread_is_the_label_set_error_itself(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(LabelSetError, match=r"part-000001.*altered") as caught:
        list(dataset(altered(world, tmp_path)))
    assert caught.value.hint
    assert caught.value.__cause__ is None


def test_long_row_is_named_before_training(world: World) -> None:
    for use in (list, LabelDataset.count):
        with pytest.raises(
            SoftshardsError, match=r"row\d+ \(chunk 0, sample 0\)(.|\n)*--pack-tokens"
        ):
            use(dataset(world.labels, pack_tokens=16))  # type: ignore[operator]


def test_state_of_a_different_version_is_refused() -> None:
    with pytest.raises(SoftshardsError, match="version 2"):
        ReaderState.from_dict({"version": 2, "seed": 0, "epoch": 0, "window": 0, "pack": 0})


def test_student_context_and_rows_without_labels(world: World, tmp_path: Path) -> None:
    plain = Row(id="plain", input_ids=[1, 2, 3, 4, 5], spans=[(1, 5, "text")])
    hidden = Row(
        id="hidden",
        input_ids=[9, 9, 9, 9, 7, 8, 6],
        spans=[(4, 7, "answer")],
        student_input_ids=[5, 7, 8, 6],
        student_spans=[(1, 4, "answer")],
    )
    bare = Row(id="bare", input_ids=[1, 2, 3], spans=[])
    path = build_label_set(
        tmp_path / "set", world.teacher, [plain, hidden, bare], vocab_size=world.vocab_size
    )
    (pack,) = list(LabelDataset(open_label_set(path), pack_tokens=16))
    assert LabelDataset(path, pack_tokens=16).count().tokens == pack.n_tokens == 9
    rows: dict[str, Any] = {key.split()[0]: row for key, row in zip(pack.keys, pack.rows)}
    assert set(rows) == {"plain", "hidden"}
    window, row = pack.window, rows["hidden"]
    tokens = window.tokens[window.token_offsets[row] : window.token_offsets[row + 1]]
    positions = window.positions[window.label_offsets[row] : window.label_offsets[row + 1]]
    assert tokens.tolist() == [5, 7, 8, 6]
    assert positions.tolist() == [1, 2, 3]
    assert np.array_equal(tokens[positions], [7, 8, 6])


def test_pack_counts(world: World) -> None:
    pack: Pack = next(iter(dataset(world.labels)))
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    assert pack.n_tokens == sum(len(rows[key].input_ids) for key in pack.keys)
    assert pack.n_labels == sum(rows[key].n_labels for key in pack.keys)
