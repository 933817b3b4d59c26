from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas import SoftshardsError
from trainer import losses
from trainer.losses.loss_flags import parse_losses
from trainer.losses.loss_table import LOSS_HELP, LOSSES
from trainer.losses.objective import LossTerm, TokenWeighting
from trainer.train.train_config import TrainConfig


def parse(*texts: str, temperature: float = 1.0) -> tuple[LossTerm, ...]:
    return parse_losses(texts, temperature=temperature, jsd_beta=0.5, skew_alpha=0.1)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(labels=Path("l"), student=Path("s"), out=Path("o"), **settings)


def test_every_loss_can_be_named() -> None:
    terms = parse(*(f"{name}=0.5" for name in LOSSES))
    assert [term.name for term in terms] == list(LOSSES)
    assert all(term.weight(step, 10) == 0.5 for term in terms for step in (0, 5, 9))


def test_every_loss_is_in_the_help_in_the_docs_and_in_the_library() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "losses.md").read_text()
    for name, loss in LOSSES.items():
        assert f"{name} ({loss.help})" in LOSS_HELP
        assert f"| `{name}` | " in docs
        assert callable(getattr(losses, loss.function))
        assert loss.function in losses.__all__


def test_british_spellings_still_work() -> None:
    assert losses.renormalised_kl is losses.renormalized_kl
    assert losses.renormalise_teacher is losses.renormalize_teacher
    assert parse("renormalised_kl=1") == parse("renormalized_kl=1")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("ce=linear:1:0", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("ce=linear:0.2:0.6", [0.2, 0.3, 0.4, 0.5, 0.6]),
        ("ce=cosine:1:0", [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]),
        ("ce=constant:2:2", [2.0] * 5),
    ],
)
def test_schedules_go_from_the_first_step_to_the_last(text: str, weights: list[float]) -> None:
    (term,) = parse(text)
    assert [term.weight(step, 5) for step in range(5)] == pytest.approx(weights)
    assert term.weight(0, 1) == weights[0]  # a run of one step


def test_weights_of_labels() -> None:
    assert config().objective.weighting.is_uniform
    assert config(kind_weight=("text=1",)).objective.weighting.is_uniform
    found = config(
        kind_weight=("answer=2", "thinking=0.2"),
        source_weight=("code/*=2", "a=b=0.5"),
        entropy_weight=-0.5,
        position_weight="0.1:64",
    ).objective.weighting
    assert found == TokenWeighting(
        kinds=(1.0, 2.0, 0.2, 1.0, 1.0),
        sources=(("code/*", 2.0), ("a=b", 0.5)),
        entropy=-0.5,
        position=(0.1, 64),
    )
    assert not found.is_uniform


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": ("forward=1",)}, "there is no 'forward'; losses are forward_kl, reverse_kl"),
        ({"loss": ("ce",)}, "NAME=WEIGHT"),
        ({"loss": ("ce=-1",)}, "weights of 0 or more"),
        ({"loss": ("ce=nan",)}, "weights of 0 or more"),
        ({"loss": ("ce=linear:1",)}, "NAME=SHAPE:FROM:TO"),
        ({"loss": ("ce=step:1:0",)}, "linear or cosine"),
        ({"loss": ("ce=1", "ce=2")}, "--loss ce is given twice"),
        ({"loss": ()}, "nothing to learn"),
        ({"loss": ("ce=0",)}, "nothing to learn"),
        ({"temperature": 0.0}, "--temperature is 0.0"),
        ({"temperature": 2.0, "loss": ("ce=1",)}, "changes nothing"),
        ({"jsd_beta": 1.0}, "--jsd-beta is 1.0; it must be above 0 and below 1"),
        ({"skew_alpha": 0.0}, "--skew-alpha is 0.0"),
        ({"kind_weight": ("think=1",)}, "no kind 'think'; kinds are text, answer, thinking"),
        ({"kind_weight": ("thinking",)}, "KIND=WEIGHT"),
        ({"source_weight": ("x=-2",)}, "weights of 0 or more"),
        ({"entropy_weight": -1.5}, "--entropy-weight is -1.5"),
        ({"position_weight": "0.1"}, "WEIGHT:LENGTH"),
        ({"position_weight": "0.1:0"}, "WEIGHT:LENGTH"),
        ({"chunk_bytes": 0}, "--chunk-bytes is 0"),
    ],
)
def test_invalid_flags_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftshardsError, match=message):
        config(**settings)


@pytest.mark.parametrize("name", list(LOSSES)[:6])
def test_a_tail_at_another_temperature_is_asked_of_the_set(name: str) -> None:
    found = config(loss=(f"{name}=1", "renormalized_kl=1"), temperature=2.0)
    assert found.objective.tail_temperature == 2.0
    others = config(loss=("renormalized_kl=1", "exact_kl=1", "ce=0.5"), temperature=2.0)
    assert others.objective.tail_temperature == 1.0
