"""Run the code blocks of docs/library.md as they stand, in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import World

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.fixture(scope="module")
def ran(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the names that the page's code defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 3
    names: dict[str, Any] = {
        "LABELS": world.labels,
        "STUDENT": world.student,
        "VOCAB_SIZE": world.vocab_size,
        "OUT": str(tmp_path_factory.mktemp("out")),
        "__name__": "library",
    }
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def logged(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_a_plain_loop_ends_at_the_last_pack(ran: dict[str, Any]) -> None:
    whole = list(ran["LabelDataset"](ran["LABELS"], pack_tokens=256, epochs=1, seed=0))
    assert ran["state"] == whole[-1].state.to_dict()
    assert ran["loss"].item() > 0


@pytest.mark.parametrize("name", ["hugging_face", "trl"])
def test_other_trainers_minimize_the_same_loss(ran: dict[str, Any], name: str) -> None:
    """Their first logged loss is the loss of the first pack under the untrained student."""
    import torch

    first = ran["collate"](next(iter(ran["LabelDataset"](ran["LABELS"], pack_tokens=256, seed=0))))
    untrained = ran["AutoModelForCausalLM"].from_pretrained(ran["STUDENT"], dtype=torch.float32)
    with torch.no_grad():
        before, after = (
            float(ran["label_loss"](model, first)) for model in (untrained, ran[name].model)
        )
    losses = logged(ran[name])
    assert len(losses) == 4
    assert losses[0] == pytest.approx(before, abs=2e-4)
    assert after < before
