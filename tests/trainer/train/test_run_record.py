"""A start opens each label set once and hashes the student once, and only if it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from schemas import LabelSet, SoftshardsError, open_label_set
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import command, exit_code
from trainer.data import mixture
from trainer.train import run_record
from trainer.train.run_record import Facts, check_same_run
from trainer.train.train_config import TrainConfig


def test_label_sets_are_opened_and_weights_hashed_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = build_label_set(
        tmp_path / "mixed",
        world.teacher,
        random_rows(4, world.vocab_size, seed=5),
        vocab_size=world.vocab_size,
    )
    opened: Counter[str] = Counter()
    hashed: Counter[Path] = Counter()
    digest = run_record.weights_digest

    def count_open(path: Path | str, **more: Any) -> LabelSet:
        opened[Path(path).name] += 1
        return open_label_set(path, **more)

    def count_digest(path: Path) -> str:
        hashed[path] += 1
        return digest(path)

    for module in (run_record, mixture):
        monkeypatch.setattr(module, "open_label_set", count_open)
    monkeypatch.setattr(run_record, "weights_digest", count_digest)
    arguments = [*command(world, tmp_path / "run")[3:], "--mix", str(mixed), "--max-steps", "2"]
    arguments += ["--eval-labels", str(world.labels), "--eval-every", "1", "--patience", "5"]

    def run(*more: str) -> None:
        opened.clear()
        hashed.clear()
        assert exit_code([*arguments, *more]) == 0

    run("--dry-run")
    assert opened == {"labels": 2, "mixed": 1}  # the held-out set is the same folder
    assert not hashed
    run()
    assert opened == {"labels": 2, "mixed": 1}  # trained on, and measured on
    assert hashed == {world.student: 1}
    run()
    assert opened == {"labels": 2, "mixed": 1}
    assert hashed == {world.student: 1}


def test_settings_that_do_not_decide_what_is_learned_may_change() -> None:
    def decisive(**changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {"labels": Path("l"), "student": Path("s"), "out": Path("o")}
        return TrainConfig(**(base | changes)).decisive()

    same: dict[str, Any] = {"labels": Path("x"), "mix": ("y",), "out": Path("z"), "resume": "never"}
    same |= {"eval_labels": Path("h"), "eval_every": 3, "keep_best": True, "save_every": 1}
    same |= {"keep_checkpoints": 9, "tracker": "tensorboard", "gradient_checkpointing": True}
    same |= {"allow_partial": True, "shard": True, "memory_gb": 1.0, "dry_run": True, "json": True}
    same |= {"chunk_bytes": 1}
    assert decisive(**same) == decisive()
    for name, value in {"lr": 1.0, "seed": 1, "student": Path("t"), "compile": True}.items():
        assert decisive(**{name: value}) != decisive()
    measured = {"eval_labels": Path("h"), "patience": 1}
    assert decisive(**measured, eval_every=1) != decisive(**measured, eval_every=2)


def test_settings_that_an_older_version_lacked_count_as_their_defaults(tmp_path: Path) -> None:
    asked: Facts = {"config": {"packing": "auto", "lr": 1e-4}}
    check_same_run({"config": {"lr": 1e-4}}, asked, tmp_path)
    with pytest.raises(SoftshardsError, match=r"config\.packing: then 'auto', now 'off'"):
        check_same_run({"config": {}}, {"config": {"packing": "off"}}, tmp_path)
    with pytest.raises(SoftshardsError, match=r"config\.packing: then 'off', now 'auto'"):
        check_same_run({"config": {"packing": "off", "lr": 1e-4}}, asked, tmp_path)
