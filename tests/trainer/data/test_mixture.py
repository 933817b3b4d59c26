"""Several label sets in one run: the weight of a set decides how often its rows are seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from schemas import SoftshardsError, open_label_set
from schemas.manifest import read_manifest, write_manifest
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from trainer.data.dataset import LabelDataset, ReaderState
from trainer.data.mixture import Part, epoch_order, open_mixture


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another label set of the same tokenizer, with lists of a different length."""
    rows = random_rows(20, world.vocab_size, seed=9)
    rows = [row.__class__(**(vars(row) | {"id": f"other-{row.id}"})) for row in rows]
    path = tmp_path_factory.mktemp("other") / "labels"
    return build_label_set(path, world.teacher, rows, vocab_size=world.vocab_size, k=5)


def dataset(world: World, mix: tuple[str, ...], epochs: int, **settings: object) -> LabelDataset:
    parts = open_mixture(open_label_set(world.labels), mix)
    return LabelDataset(parts, pack_tokens=128, window=3, epochs=epochs, **settings)  # type: ignore[arg-type]


def test_rows_are_seen_in_proportion_to_their_weight(world: World, other: Path) -> None:
    packs = list(dataset(world, (f"{other}=0.5",), epochs=4))
    seen = Counter(key for pack in packs for key in pack.keys)
    assert {n for key, n in seen.items() if key.startswith("other")} == {2}
    assert {n for key, n in seen.items() if not key.startswith("other")} == {4}
    twice = Counter(k for pack in dataset(world, (f"{other}=2",), epochs=1) for k in pack.keys)
    assert {n for key, n in twice.items() if key.startswith("other")} == {2}
    assert any(len({key.startswith("other") for key in pack.keys}) == 2 for pack in packs)


def test_counting_and_resuming_agree_with_reading(world: World, other: Path) -> None:
    packs = list(dataset(world, (f"{other}=0.3",), epochs=2))
    assert dataset(world, (f"{other}=0.3",), epochs=2).count().packs == len(packs)
    for done in (0, len(packs) // 2, len(packs) - 2):
        state = ReaderState.from_dict(packs[done].state.to_dict())
        rest = dataset(world, (f"{other}=0.3",), epochs=2, state=state)
        assert [p.keys for p in rest] == [p.keys for p in packs[done + 1 :]]


def test_lists_of_a_different_length_are_padded(world: World, other: Path) -> None:
    for pack in dataset(world, (str(other),), epochs=1):
        for key, row in zip(pack.keys, pack.rows):
            window = pack.window
            here = slice(window.label_offsets[row], window.label_offsets[row + 1])
            counts = np.isfinite(window.labels.topk_logprobs[here]).sum(axis=1)
            assert (counts == (5 if key.startswith("other") else 8)).all()


def test_a_single_set_keeps_its_order(world: World) -> None:
    from trainer.data.order import row_group_order

    labels = open_label_set(world.labels)
    order = epoch_order((Part(labels=labels),), 3, 2)
    np.testing.assert_array_equal(order[:][:, 1], row_group_order(len(labels.row_groups), 3, 2))


def test_a_fraction_visits_every_row_group_in_turn(world: World) -> None:
    labels = open_label_set(world.labels)
    parts = (Part(labels=labels), Part(labels=labels, weight=0.4))
    turns: Counter[int] = Counter()
    for epoch in range(5):
        order = epoch_order(parts, 0, epoch)
        turns.update(group for part, group in order[:].tolist() if part == 1)
    assert set(turns.values()) == {2}, "5 epochs at 0.4: twice, all of them"


def test_a_different_tokenizer_is_refused(world: World, other: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    content = json.loads((copy / "tokenizer" / "tokenizer.json").read_text())
    content["model"]["vocab"] = {k: v + 1 for k, v in content["model"]["vocab"].items()}
    (copy / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    from schemas.fingerprint import sha256_file, tokenizer_digest

    manifest = read_manifest(copy)
    identity = manifest.identity.model_copy(
        update={"tokenizer": tokenizer_digest(copy / "tokenizer")}
    )
    files = tuple(
        f.model_copy(update={"sha256": sha256_file(copy / f.path)})
        for f in manifest.tokenizer_files
    )
    changes = {"identity": identity, "identity_digest": identity.digest, "tokenizer_files": files}
    write_manifest(copy, manifest.model_copy(update=changes))
    with pytest.raises(SoftshardsError, match="its tokenizer differs from the one of"):
        open_mixture(open_label_set(world.labels), (str(copy),))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "much"])
def test_invalid_weights_are_refused(world: World, other: Path, weight: str) -> None:
    with pytest.raises(SoftshardsError, match="--mix"):
        open_mixture(open_label_set(world.labels), (f"{other}={weight}",))


def test_a_run_records_its_mixture_and_resumes_only_with_the_same(
    world: World, other: Path, tmp_path: Path
) -> None:
    from trainer.train.loop import train
    from trainer.train.train_config import TrainConfig

    def config(**changes: object) -> TrainConfig:
        settings = {"max_steps": 2, "save_every": 1, "pack_tokens": 128, "packs_per_step": 1}
        base = {"labels": world.labels, "student": world.student, "out": tmp_path / "run"}
        return TrainConfig(**(base | settings | changes))  # type: ignore[arg-type]

    assert train(config(mix=(f"{other}=0.5",))) == 0
    facts = json.loads((tmp_path / "run" / "result.json").read_text())["facts"]["labels"]
    assert [mixed["weight"] for mixed in facts["mix"]] == [0.5]
    with pytest.raises(SoftshardsError, match=r"labels\.mix"):
        train(config(mix=(f"{other}=0.7",)))
