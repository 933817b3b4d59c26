"""Ranks that read a label set from an object store train like one process on a local copy."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from schemas import LabelSetError, open_label_set
from schemas.cache_folder import CACHE
from schemas.remote import CACHE_GB, Remote
from tests.objects import upload
from tests.trainer.conftest import World
from tests.trainer.data.test_shared_reading import all_packs, assert_shared
from tests.trainer.running import command, config, log, run_ranks
from tests.trainer.thread_ranks import in_ranks
from trainer.data import wait_for_store
from trainer.train.loop import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("object_store")]

KEYS = ("step", "tokens", "labels", "lr")
VALUES = ("loss", "kl", "ce", "teacher_tail", "student_rest")


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_losses_are_those_of_one_process(
    world: World, one: Path, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    url = upload(world.folder, f"{ranks}-ranks")
    arguments = command(world, tmp_path / "run", "--eval-labels", url)
    for name, value in (("--labels", url), ("--packs-per-step", "4"), ("--epochs", "2")):
        arguments[arguments.index(name) + 1] = value
    code, errors = run_ranks(arguments, ranks)
    assert code == 0, errors
    ours, theirs = log(tmp_path / "run"), log(one)
    assert [[line[key] for key in KEYS] for line in ours] == [
        [line[key] for key in KEYS] for line in theirs
    ]
    for name in VALUES:
        assert [line[name] for line in ours] == pytest.approx(
            [line[name] for line in theirs], rel=1e-6
        )
    for mine, others in zip(measurements(tmp_path / "run"), measurements(one), strict=True):
        assert mine == pytest.approx(others, rel=1e-6)


@pytest.fixture(scope="module")
def one(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process on local sets."""
    out = tmp_path_factory.mktemp("one") / "run"
    settings: dict[str, Any] = {"gradient_checkpointing": True, "eval_labels": world.labels}
    train(config(world, out, **settings))
    assert len(log(out)) == 7
    return out


def measurements(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]


def test_a_rank_that_loses_the_store_for_a_while_continues(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv(CACHE_GB, "0")
    monkeypatch.setattr(wait_for_store, "PAUSE", 0.01)
    url = upload(world.folder, "lost-for-a-while")
    opened = [open_label_set(url) for _ in range(2)]
    tries, original = count(), Remote.read

    def read(self: Remote, name: str, *place: Any) -> bytes:
        if self is opened[1].remote and 2 <= next(tries) < 8:
            error = LabelSetError("cannot be read", path=name)
            raise error from ConnectionResetError("gone")
        return original(self, name, *place)

    monkeypatch.setattr(Remote, "read", read)
    with pytest.warns(UserWarning, match="does not answer; waiting for it"):
        found = in_ranks(2, lambda r: all_packs(opened[r.rank], exchange=r))
    assert next(tries) > 8
    assert_shared(found, all_packs(world.labels))  # type: ignore[arg-type]
