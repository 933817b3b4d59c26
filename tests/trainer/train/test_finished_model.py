"""A finished run is reused only if its model is as it was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.train.loop import train
from trainer.train.run_record import find_finished, open_inputs


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(world, out, save_every=4))
    return out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one byte": ("model.safetensors", lambda path: path.write_bytes(b"x")),
    "no weights": ("model.safetensors", Path.unlink),
    "a flipped bit": ("model.safetensors", flip),
    "truncated": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8])),
    "empty": ("model.safetensors", lambda path: path.write_bytes(b"")),
    "another tokenizer": ("tokenizer.json", lambda path: path.write_text("{}")),
    "another config": ("config.json", lambda path: path.write_text("{}")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_is_not_reused(
    kind: str, world: World, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    name, damage = DAMAGE[kind]
    damage(out / "final" / name)
    settings = config(world, out, save_every=4)
    with pytest.raises(SoftshardsError) as caught:
        find_finished(open_inputs(settings))
    assert str(out / "final" / name) in str(caught.value)
    assert f"delete {out / 'final'}" in str(caught.value)
    # Do what the hint says: the model is the same again, byte for byte.
    shutil.rmtree(out / "final")
    assert find_finished(open_inputs(settings)) is None
    assert train(settings) == 0
    for file in (finished / "final").iterdir():
        assert (out / "final" / file.name).read_bytes() == file.read_bytes()
    assert (out / "log.jsonl").read_bytes() == (finished / "log.jsonl").read_bytes()


def test_files_beside_the_model_are_the_users_own(
    world: World, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "final" / "README.md").write_text("my student")
    assert find_finished(open_inputs(config(world, out))) is not None


def test_a_result_without_digests_is_reused(world: World, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    content = json.loads((out / "result.json").read_text())
    assert set(content.pop("files")) == {path.name for path in (out / "final").iterdir()}
    (out / "result.json").write_text(json.dumps(content))
    assert find_finished(open_inputs(config(world, out))) is not None
