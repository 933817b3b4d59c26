"""Ranks that share the reading of windows: the same packs as one process, each byte read once."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set
from schemas.row_group import RowGroup
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.thread_ranks import in_ranks
from trainer.data import load_windows
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset, Pack, PackSize, ReaderState, own_packs
from trainer.data.exchange import Exchange
from trainer.data.mixture import Part
from trainer.data.share_window import divide_reading
from trainer.data.table_bytes import from_bytes, to_bytes
from trainer.data.vocab_map import VocabMap
from trainer.data.window import Window

SETTINGS: dict[str, Any] = {"pack_tokens": 128, "window": 3, "epochs": 2}


def all_packs(labels: Any, **settings: Any) -> list[PackSize]:
    return list(LabelDataset(labels, **(SETTINGS | settings)).all_packs())


def shared(world: int, labels: Any, **settings: Any) -> list[list[PackSize]]:
    """Return what each of several ranks is given."""
    found = in_ranks(world, lambda ranks: all_packs(labels, exchange=ranks, **settings))
    for packs in found:
        if isinstance(packs, Exception):
            raise packs
    return found  # type: ignore[return-value]


def assert_same(ours: Pack, theirs: Pack) -> None:
    assert ours.keys == theirs.keys
    assert ours.documents == theirs.documents
    assert [ours.window.meta[r] for r in ours.rows if ours.window.meta] == [
        theirs.window.meta[r] for r in theirs.rows if theirs.window.meta
    ]
    first, second = collate(ours), collate(theirs)
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def assert_shared(ranks: list[list[PackSize]], alone: list[PackSize]) -> None:
    """Check that every rank knows all packs, and has the rows of its own and of the last."""
    for rank, packs in enumerate(ranks):
        sizes = [(pack.n_tokens, pack.n_labels, pack.state) for pack in packs]
        assert sizes == [(pack.n_tokens, pack.n_labels, pack.state) for pack in alone]
        assert isinstance(packs[-1], Pack)
        for number, (ours, theirs) in enumerate(zip(packs, alone)):
            if number % len(ranks) == rank:
                assert isinstance(ours, Pack)
            if isinstance(ours, Pack):
                assert isinstance(theirs, Pack)
                assert_same(ours, theirs)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_get_the_packs_of_one_process(world: World, world_size: int) -> None:
    for settings in ({}, {"padded": True, "meta": True}, {"window": 1, "seed": 3}):
        alone = all_packs(world.labels, **settings)
        assert_shared(shared(world_size, world.labels, **settings), alone)


def test_views_mixtures_vocabularies_and_draws(world: World, tmp_path: Path) -> None:
    rows = random_rows(10, world.vocab_size, seed=5)
    drawn = build_label_set(
        tmp_path / "drawn", world.teacher, rows, vocab_size=world.vocab_size, draws=8
    )
    assert_shared(shared(3, drawn, drawn=True, window=2), all_packs(drawn, drawn=True, window=2))
    labels = open_label_set(world.labels)
    parts = (Part(labels=labels), Part(labels=open_label_set(drawn), weight=0.5))
    assert_shared(shared(2, parts), all_packs(parts))
    ids = np.arange(world.vocab_size, dtype=np.int32)
    ids[:3] = -1  # rows with these are left out, by whoever reads them
    known: dict[str, Any] = {"vocab_map": VocabMap(ids, world.vocab_size), "window": 1}
    alone = all_packs(labels, **known)
    assert len(alone) < len(all_packs(labels, window=1))
    assert_shared(shared(3, labels, **known), alone)


def test_any_state_resumes_with_another_number_of_ranks(world: World) -> None:
    alone = all_packs(world.labels)
    for done in (1, 6, len(alone) - 1):
        state = ReaderState.from_dict(alone[done - 1].state.to_dict())
        assert_shared(shared(3, world.labels, state=state), alone[done:])
    behind = replace(alone[0].state, pack=len(alone) // 3)  # past the end of its window
    assert_shared(shared(2, world.labels, state=behind), all_packs(world.labels, state=behind))


def test_iterating_yields_the_own_packs(world: World) -> None:
    alone = list(LabelDataset(world.labels, **SETTINGS))

    def own(ranks: Exchange) -> list[Pack]:
        return list(LabelDataset(world.labels, exchange=ranks, **SETTINGS))

    for rank, packs in enumerate(in_ranks(3, own)):
        assert not isinstance(packs, Exception)
        assert [pack.keys for pack in packs] == [pack.keys for pack in alone[rank::3]]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_rank_reads_its_share_of_the_bytes_and_decodes_its_own_rows(
    world: World, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[int] = Counter()
    groups_read: Counter[tuple[str, int]] = Counter()
    decoded: Counter[int] = Counter()
    original, decode = LabelSet.read_row_group, load_windows.decode_window

    def reading(self: LabelSet, group: RowGroup, *args: Any, **settings: Any) -> pa.Table:
        read[id(self)] += group.bytes.stop - group.bytes.start
        groups_read[group.shard, group.index] += 1
        return original(self, group, *args, **settings)

    def decoding(table: pa.Table, **settings: Any) -> Window:
        decoded[threading.get_ident()] += table["n_labels"].to_numpy().sum()
        return decode(table, **settings)

    monkeypatch.setattr(LabelSet, "read_row_group", reading)
    monkeypatch.setattr(load_windows, "decode_window", decoding)
    opened = [open_label_set(world.labels) for _ in range(world_size)]

    def walk(ranks: Exchange) -> list[PackSize]:
        exchange = ranks if world_size > 1 else None
        return all_packs(opened[ranks.rank], exchange=exchange, epochs=3)

    packs = in_ranks(world_size, walk)[0]
    assert not isinstance(packs, Exception)
    labels = opened[0]
    sizes = [group.bytes.stop - group.bytes.start for group in labels.row_groups]
    assert set(groups_read.values()) == {3}, "each row group once an epoch, by one rank"
    assert sum(read.values()) == 3 * sum(sizes)
    for each in opened:
        assert read[id(each)] <= 3 * sum(sizes) / world_size + max(sizes)
    assert sum(decoded.values()) <= 3 * labels.labels + 3 * world_size * max(
        pack.n_labels for pack in packs
    )


def test_no_rank_reads_more_than_its_share_and_one_row_group() -> None:
    rng = np.random.default_rng(0)
    for world_size in (2, 3, 8, 64):
        so_far = np.zeros(world_size, np.int64)
        total = largest = 0
        for _ in range(200):
            sizes = rng.integers(1, 10_000, int(rng.integers(1, 9))).tolist()
            before = so_far.copy()
            readers = divide_reading(sizes, so_far)
            added = np.bincount(readers, sizes, minlength=world_size)
            assert (so_far - before == added).all()
            total, largest = total + sum(sizes), max(largest, *sizes)
            assert so_far.max() <= total / world_size + largest


def damaged(world: World, path: Path) -> Path:
    shutil.copytree(world.folder, path)
    shard = path / "shards" / "part-000001.parquet"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    return path


def failures(world_size: int, labels: Any, **settings: Any) -> list[Exception]:
    found = in_ranks(world_size, lambda ranks: all_packs(labels, exchange=ranks, **settings))
    assert all(isinstance(error, Exception) for error in found)
    return found  # type: ignore[return-value]


def test_all_ranks_raise_the_error_of_the_one_that_fails(world: World, tmp_path: Path) -> None:
    errors = failures(3, damaged(world, tmp_path / "labels"))
    assert len({str(error) for error in errors}) == 1
    assert "part-000001" in str(errors[0])
    assert "altered" in str(errors[0])
    assert {type(error) for error in errors} == {LabelSetError}
    errors = failures(2, world.labels, pack_tokens=16)
    assert {type(error) for error in errors} == {SoftshardsError}
    assert all("--pack-tokens" in str(error) and "(chunk 0" in str(error) for error in errors)


def test_a_row_that_cannot_be_decoded_and_an_error_in_the_program(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()

    def decode(table: pa.Table, **settings: Any) -> Window:
        if next(numbers) == 3:
            raise RuntimeError("as it happens")
        return original(table, **settings)

    original = load_windows.decode_window
    monkeypatch.setattr(load_windows, "decode_window", decode)
    errors = failures(2, world.labels)
    assert sorted(type(error).__name__ for error in errors) == ["RuntimeError", "SoftshardsError"]
    assert all("as it happens" in str(error) for error in errors)


def test_labels_that_are_not_a_distribution_end_all_ranks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found where windows are read, not where one rank turns them into a batch."""
    numbers, original = count(), load_windows.decode_window

    def decode(table: pa.Table, **settings: Any) -> Window:
        window = original(table, **settings)
        if next(numbers) == 3:
            ids = window.labels.topk_ids.copy()
            ids[5, 1] = ids[5, 0]
            window = replace(window, labels=replace(window.labels, topk_ids=ids))
        return window

    monkeypatch.setattr(load_windows, "decode_window", decode)
    errors = failures(2, world.labels)
    assert {type(error) for error in errors} == {LabelSetError}
    assert len({str(error) for error in errors}) == 1
    assert "labels hold an id twice" in str(errors[0])


def test_a_lost_rank_ends_the_others(world: World) -> None:
    def walk(ranks: Exchange) -> int:
        packs = LabelDataset(world.labels, exchange=ranks, **SETTINGS).all_packs()
        if ranks.rank == 1:
            next(packs)
            packs.close()
            return 0  # and its connections are closed
        return len(list(packs))

    found = in_ranks(3, walk)
    assert found[1] == 0
    for error in (found[0], found[2]):
        assert isinstance(error, SoftshardsError)
        assert "another process of this run ended" in str(error)
        assert "resumes from the last checkpoint" in str(error)


def test_lengths_that_no_index_states_are_read_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(world.vocab_size, dtype=np.int32)
    known: dict[str, Any] = SETTINGS | {"vocab_map": VocabMap(ids, world.vocab_size)}
    expected = LabelDataset(world.labels, **known).count()
    asked: list[tuple[str, int]] = []
    original = LabelSet.read_row_group

    def reading(self: LabelSet, group: RowGroup, *args: Any, **settings: Any) -> pa.Table:
        asked.append((group.shard, group.index))
        return original(self, group, *args, **settings)

    monkeypatch.setattr(LabelSet, "read_row_group", reading)
    found = in_ranks(3, lambda r: LabelDataset(world.labels, exchange=r, **known).count())
    assert found == [expected] * 3
    assert len(asked) == len(set(asked)) == len(open_label_set(world.labels).row_groups)


def test_a_rank_without_a_pack_runs_the_last_one_for_nothing(world: World) -> None:
    (packs, others) = shared(2, world.labels, epochs=1)
    rest = len(packs) // 2 * 2 - 1  # a step of 3 packs, or of 1
    for rank, mine in enumerate((packs, others)):
        chosen = own_packs(mine[rest - 1 :][:3], rank, 2)
        assert [weight for _, weight in chosen] in ([1.0, 1.0], [1.0, 0.0], [1.0])
    only = packs[-1:]
    assert isinstance(only[0], Pack)
    assert own_packs(only, 0, 2) == [(only[0], 1.0)]
    assert own_packs(only, 1, 2) == [(only[0], 0.0)]


def test_damaged_messages_are_refused() -> None:
    table = pa.table({"a": [1, 2, 3]})
    data = bytearray(to_bytes(table))
    assert from_bytes(memoryview(data), 3).equals(table)
    with pytest.raises(SoftshardsError, match="3 rows, not 2"):
        from_bytes(memoryview(data), 2)
    for place in range(len(data)):
        data[place] ^= 4
        with pytest.raises(SoftshardsError, match="arrived damaged"):
            from_bytes(memoryview(data), 3)
        data[place] ^= 4
    with pytest.raises(SoftshardsError, match="arrived damaged"):
        from_bytes(memoryview(b""), 3)
