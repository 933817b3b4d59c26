"""`--loss router`: the balance of experts over the tokens of all documents, without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from tests.trainer.student.families import family_config, save_family
from trainer.data.collate import lay_out
from trainer.student.router_loss import check_router_loss, find_router_loss
from trainer.student.student import make_student
from trainer.train.loop import train

MIXTURES = (
    *(
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "granitemoe",
        "gpt_oss",
        "phimoe",
        "minimax_m2",
    ),
    *(
        "flex_olmo",
        "dbrx",
        "jetmoe",
        "qwen3_next",
        "granitemoehybrid_attn",
        "jamba",
        "ernie4_5_moe",
    ),
)
WITHOUT = ("llama", "deepseek_v3", "glm4_moe", "mamba", "lfm2_moe", "doge")
LENGTHS = (9, 34, 2, 20)


def expected_balance(model: Any, documents: list[Tensor]) -> float:
    """Return E sum_e f_e P_e over the tokens of all documents, from the routers' own logits."""
    layers: list[Tensor] = []
    for ids in documents:
        with torch.no_grad():
            outputs = model(input_ids=ids[None], use_cache=False, output_router_logits=True)
        layers.append(torch.stack([x.reshape(len(ids), -1) for x in outputs.router_logits]))
    probabilities = torch.cat(layers, 1).float().softmax(-1).flatten(0, 1).double()  # [L T, E]
    chosen = probabilities.topk(model.num_experts_per_tok, -1).indices
    counts = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
    return float(model.num_experts * (counts.mean(0) * probabilities.mean(0)).sum())


@pytest.mark.parametrize("family", MIXTURES)
def test_balance_of_a_batch(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(family))
    student = make_student(model, 280).eval()
    if find_router_loss(student.model) is None:
        pytest.fail("no loss was found")
    check_router_loss(student.model, 280)
    student.with_router = True
    gen = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 280, (sum(LENGTHS),), generator=gen)
    packed = lay_out(tokens.numpy().astype(np.int32), np.array(LENGTHS), student.attention)
    _, found = student._run_body(packed)
    assert found is not None
    assert found.requires_grad
    expected = expected_balance(student.model, list(torch.split(tokens, list(LENGTHS))))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", WITHOUT)
def test_students_without_the_loss_are_refused(family: str) -> None:
    model = AutoModelForCausalLM.from_config(family_config(family))
    with pytest.raises(SoftshardsError, match=f"--loss router: .*{type(model).__name__}"):
        check_router_loss(model, 280)


@pytest.fixture(scope="module")
def mixture(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "student"
    return save_family("qwen3_moe", world.student, folder, vocab_size=world.vocab_size + 20)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["on", "off"])
def test_training_balances_the_experts(
    world: World, mixture: Path, packing: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"student": mixture, "epochs": 4, "packing": packing}
    terms = ("forward_kl=1", "router=0.5")
    train(config(world, tmp_path / "with", loss=terms, **settings))
    train(config(world, tmp_path / "without", loss=("forward_kl=1", "router=0"), **settings))
    balanced, other = log(tmp_path / "with"), log(tmp_path / "without")
    assert balanced[0]["loss/router"] == other[0]["loss/router"]
    assert balanced[0]["loss"] == pytest.approx(
        balanced[0]["kl"] + 0.5 * balanced[0]["loss/router"]
    )
    assert 2 <= balanced[-1]["loss/router"] < other[-1]["loss/router"]  # 2 experts a token


def test_gradient_checkpointing_changes_nothing(
    world: World, mixture: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"student": mixture, "max_steps": 2, "loss": ("ce=1", "router=0.5")}
    for name in (False, True):
        train(config(world, tmp_path / str(name), gradient_checkpointing=name, **settings))
    plain, checkpointed = log(tmp_path / "False"), log(tmp_path / "True")
    for one, two in zip(plain, checkpointed, strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(("terms", "says"), [(("ce=1",), True), (("ce=1", "router=0.01"), False)])
def test_a_mixture_whose_balance_is_left_out_is_told(
    world: World,
    mixture: Path,
    tmp_path: Path,
    terms: tuple[str, ...],
    says: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(config(world, tmp_path, student=mixture, max_steps=1, loss=terms))
    found = capsys.readouterr().err
    assert ("the balance of its experts is not in --loss" in found) == says


def test_dense_students(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(world, tmp_path / "plain", max_steps=1))
    assert "experts" not in capsys.readouterr().err
    with pytest.raises(SoftshardsError, match="no such loss for LlamaForCausalLM"):
        train(config(world, tmp_path / "router", max_steps=1, loss=("ce=1", "router=0.1")))
    with pytest.raises(SoftshardsError, match="--loss router with --compile"):
        config(world, tmp_path / "compile", compile=True, loss=("ce=1", "router=0.1"))
