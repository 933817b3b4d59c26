"""Damage to a checkpoint is noticed: the run resumes from the one before, or says why it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.train.loop import train


@pytest.fixture(scope="module")
def stopped(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that lost its end after checkpoints at steps 2, 4 and 6; tests copy it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(world, out, save_every=2, keep_checkpoints=3))
    shutil.copyfile(out / "log.jsonl", out / "whole.jsonl")
    (out / "result.json").unlink()
    shutil.rmtree(out / "final")
    return out


def copy(stopped: Path, out: Path) -> list[Path]:
    """Return the checkpoints of a copy, from the oldest to the newest."""
    shutil.copytree(stopped, out)
    return sorted((out / "checkpoints").iterdir())


def flip(path: Path, where: float = 0.5) -> None:
    """Flip the bits of one byte."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)


def is_whole(out: Path) -> bool:
    return (out / "log.jsonl").read_bytes() == (out / "whole.jsonl").read_bytes()


FILES = ("model.pt", "optimizer.pt", "scheduler.pt", "rng.pt", "meta.json", "digests.json")


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes_are_named_and_the_run_ends_as_if_nothing_happened(
    name: str, world: World, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    *_, newest = copy(stopped, out)
    flip(newest / name)
    capsys.readouterr()
    train(config(world, out, save_every=2, keep_checkpoints=3))
    shown = capsys.readouterr().err
    assert "warning: a checkpoint is damaged, the run resumes from the one before it" in shown
    assert str(newest / name) in shown
    assert "resuming after step 4 of 7" in shown
    assert is_whole(out)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a shorter file": lambda folder: (folder / "model.pt").write_bytes(b"x"),
    "a missing file": lambda folder: (folder / "optimizer.pt").unlink(),
    "zeros of the right length": lambda folder: (folder / "model.pt").write_bytes(
        bytes((folder / "model.pt").stat().st_size)
    ),
    "another checkpoint's tensors": lambda folder: shutil.copyfile(
        folder.with_name("step-00000002") / "model.pt", folder / "model.pt"
    ),
    "a later step in meta.json": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"step": 6', '"step": 5')
    ),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "another version": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"version": 1', '"version": 2')
    ),
    "no digest of a file": lambda folder: (folder / "digests.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_damage(
    kind: str, world: World, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    *_, newest = copy(stopped, out)
    DAMAGE[kind](newest)
    train(config(world, out, save_every=2, keep_checkpoints=3))
    shown = capsys.readouterr().err
    assert f"the one before it: {newest}" in shown
    assert "resuming after step 4 of 7" in shown
    assert is_whole(out)


def test_two_damaged_checkpoints_are_both_named(
    world: World, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _, middle, newest = copy(stopped, out)
    flip(middle / "model.pt")
    flip(newest / "model.pt")
    train(config(world, out, save_every=2, keep_checkpoints=3))
    shown = capsys.readouterr().err
    assert str(middle / "model.pt") in shown
    assert str(newest / "model.pt") in shown
    assert "resuming after step 2 of 7" in shown
    assert is_whole(out)


def test_a_run_without_a_whole_checkpoint_is_refused(
    world: World, stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for folder in copy(stopped, out):
        flip(folder / "model.pt")
    with pytest.raises(SoftshardsError, match="no checkpoint here can be resumed from") as caught:
        train(config(world, out, save_every=2))
    assert f"delete {out / 'checkpoints'} to train from the start" in str(caught.value)
    assert str(caught.value).count("its digest differs") == 3


def test_a_named_checkpoint_that_is_damaged_is_refused(
    world: World, stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    *_, newest = copy(stopped, out)
    flip(newest / "optimizer.pt", 0.9)
    with pytest.raises(SoftshardsError, match="no complete checkpoint here") as caught:
        train(config(world, out, resume=newest))
    assert f"{newest / 'optimizer.pt'}: the file was altered" in str(caught.value)


def test_a_checkpoint_without_digests_resumes_with_a_warning(
    world: World, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    *_, newest = copy(stopped, out)
    (newest / "digests.json").unlink()
    train(config(world, out, save_every=2))
    shown = capsys.readouterr().err
    assert f"warning: {newest} is of an earlier version without digests" in shown
    assert "resuming after step 6 of 7" in shown
    assert is_whole(out)


def test_whole_checkpoints_warn_of_nothing(
    world: World, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    copy(stopped, out)
    train(config(world, out, save_every=2))
    assert "digests" not in capsys.readouterr().err
    assert is_whole(out)
