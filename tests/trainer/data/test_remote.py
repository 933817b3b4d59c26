"""Training on label sets in an object store works as on local ones."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from schemas import LabelSetError, open_label_set
from schemas.cache_folder import CACHE
from schemas.remote import CACHE_GB, Remote
from tests.objects import bucket, upload
from tests.trainer.conftest import World
from tests.trainer.running import log
from trainer.cli import app
from trainer.data.dataset import LabelDataset

pytestmark = pytest.mark.usefixtures("object_store", "cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(CACHE_GB, raising=False)  # which --out-in-store sets
    return tmp_path / "cache"


def run(*arguments: object) -> int:
    code = app.meta([str(a) for a in arguments], result_action="return_value")
    return int(code)


def flags(world: World, labels: object, out: Path) -> list[object]:
    content = ["--labels", labels, "--student", world.student, "--out", out, "--epochs", 2]
    return ["train", *content, "--pack-tokens", 128, "--packs-per-step", 4, "--window", 4]


@pytest.mark.slow
def test_the_loss_curve_equals_the_local_one(world: World, tmp_path: Path) -> None:
    url = upload(world.folder, "labels")
    more = ["--mix", f"{url}=0.5", "--eval-labels", url]
    assert run(*flags(world, url, tmp_path / "there"), *more) == 0
    more = ["--mix", f"{world.labels}=0.5", "--eval-labels", world.labels]
    assert run(*flags(world, world.labels, tmp_path / "here"), *more) == 0

    def losses(name: str) -> list[Any]:
        return [(line["loss"], line["ce"], line["labels"]) for line in log(tmp_path / name)]

    assert losses("there") == losses("here")
    assert (tmp_path / "there/final/model.safetensors").read_bytes() == (
        tmp_path / "here/final/model.safetensors"
    ).read_bytes()
    results = tmp_path / "eval.json"
    assert run("evaluate", "--labels", url, "--model", world.student, "--out", results) == 0
    assert json.loads(results.read_text())["label_set"]["path"] == url
    page = tmp_path / "report.html"
    assert run("report", "--eval", results, "--labels", url, "--out", page) == 0
    assert url in page.read_text()


@pytest.mark.slow
def test_the_next_student_downloads_no_labels(world: World, tmp_path: Path) -> None:
    url = upload(world.folder, "once")
    assert run(*flags(world, url, tmp_path / "first")) == 0
    bucket().rm(f"{url}/shards", recursive=True)
    assert run(*flags(world, url, tmp_path / "second"), "--seed", 1) == 0
    seen = [sum(line["labels"] for line in log(tmp_path / name)) for name in ("first", "second")]
    assert seen[0] == seen[1] > 0


@pytest.mark.slow
def test_row_groups_are_fetched_ahead_and_several_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_GB, "0")
    labels = open_label_set(upload(world.folder, "ahead"))
    shards = {group.shard for group in labels.row_groups}
    for group in labels.row_groups:
        labels.shard_facts(group)  # footers are read once
    asked: list[str] = []
    together = threading.Barrier(4, timeout=300)
    original = Remote.read

    def read(self: Remote, name: str, *place: Any) -> bytes:
        asked.append(name)
        if len(asked) <= 4:
            together.wait()  # passes only if four are in flight
        return original(self, name, *place)

    monkeypatch.setattr(Remote, "read", read)
    packs = iter(LabelDataset(labels, pack_tokens=128, window=4))
    next(packs)
    wanted = len(labels.row_groups)
    assert wanted >= 8, "two windows"
    for _ in range(2000):  # the second window is fetched while the first is trained on
        if len(asked) >= 8:
            break
        threading.Event().wait(0.01)
    assert len(asked) == 8
    assert set(asked) <= shards
    rest = list(packs)
    assert rest
    assert len(asked) == wanted, "each row group once an epoch"


def test_an_invalid_url_and_a_set_that_disappears(world: World, tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match=r"s3://bucket/nothing/manifest.json: there is no such"):
        run(*flags(world, "s3://bucket/nothing", tmp_path / "out"))
    url = upload(world.folder, "leaving")
    labels = open_label_set(url)
    bucket().rm(f"{url}/{labels.row_groups[0].shard}")
    with pytest.raises(LabelSetError, match=rf"{url}/shards/.*: the shard is missing"):
        list(LabelDataset(labels, pack_tokens=128))
