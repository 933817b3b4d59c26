from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas import SoftshardsError
from trainer.train.loss_terms import LOSSES, LossTerm, TokenWeighting, parse_losses
from trainer.train.train_config import TrainConfig


def parse(*texts: str, temperature: float = 1.0) -> tuple[LossTerm, ...]:
    return parse_losses(texts, temperature=temperature, jsd_beta=0.5, skew_alpha=0.1)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(labels=Path("l"), student=Path("s"), out=Path("o"), **settings)


def test_every_loss_can_be_named() -> None:
    terms = parse(*(f"{name}=0.5" for name in LOSSES))
    assert [term.name for term in terms] == list(LOSSES)
    assert all(term.weight(step, 10) == 0.5 for term in terms for step in (0, 5, 9))


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
    assert config().token_weighting.uniform
    assert config(kind_weight=("text=1",)).token_weighting.uniform
    found = config(
        kind_weight=("answer=2", "thinking=0.2"),
        source_weight=("code/*=2", "a=b=0.5"),
        entropy_weight=-0.5,
        position_weight="0.1:64",
    ).token_weighting
    assert found == TokenWeighting(
        kinds=(1.0, 2.0, 0.2, 1.0, 1.0),
        sources=(("code/*", 2.0), ("a=b", 0.5)),
        entropy=-0.5,
        position=(0.1, 64),
    )
    assert not found.uniform


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": ("forward=1",)}, "there is no 'forward'; there are forward_kl, reverse_kl"),
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
        ({"kind_weight": ("think=1",)}, "no kind 'think'; there are text, answer, thinking"),
        ({"kind_weight": ("thinking",)}, "KIND=WEIGHT"),
        ({"source_weight": ("x=-2",)}, "weights of 0 or more"),
        ({"entropy_weight": -1.5}, "--entropy-weight is -1.5"),
        ({"position_weight": "0.1"}, "WEIGHT:LENGTH"),
        ({"position_weight": "0.1:0"}, "WEIGHT:LENGTH"),
        ({"chunk_bytes": 0}, "--chunk-bytes is 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftshardsError, match=message):
        config(**settings)


@pytest.mark.parametrize("name", LOSSES[:6])
def test_a_tail_at_another_temperature_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SoftshardsError) as caught:
        config(loss=(f"{name}=1", "renormalized_kl=1"), temperature=2.0)
    assert f"--loss {name} at --temperature 2" in str(caught.value)
    assert "not stored" in str(caught.value)
    assert "hint: " in str(caught.value)
    assert config(loss=("renormalized_kl=1", "ce=0.5"), temperature=2.0).temperature == 2.0
