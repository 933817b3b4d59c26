"""`--compile`: one graph for every layer and pack, and the losses of an eager run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.train.loop import train

pytestmark = pytest.mark.slow

NAMES = ("loss", "kl", "ce")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compile(world: World, tmp_path: Path, gradient_checkpointing: bool) -> None:
    settings: dict[str, Any] = {
        **{"epochs": 1, "max_steps": 3, "eval_labels": world.labels},
        "gradient_checkpointing": gradient_checkpointing,
    }
    train(config(world, tmp_path / "plain", **settings))
    torch._dynamo.reset()
    counters.clear()
    train(config(world, tmp_path / "compiled", **settings, compile=True))
    # Held-out packs, the memory estimate and further layers cause no compilation.
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for plain, compiled in zip(log(tmp_path / "plain"), log(tmp_path / "compiled"), strict=True):
        for name in NAMES:
            assert compiled[name] == pytest.approx(plain[name], rel=1e-5)
