"""Our losses equal published implementations, at settings where both mean the same.

On a CPU run TRL's losses (plain PyTorch) and Liger's chunked fused JSD (plain PyTorch, here
uncompiled). Liger's Triton kernels (KL, JSD, TVD) need a GPU.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss
from torch import Tensor

from tests.trainer.losses.dense import buckets_at
from trainer import losses
from trainer.ops import linear_label_logprobs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL says that these modules may move
    from trl.experimental.gkd import GKDTrainer
    from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss

N, D, V, K = 12, 6, 40, 8
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
"""0 is forward KL and 1 reverse KL in both libraries."""


def case(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    made = {"hidden": draw(N, D), "weight": draw(V, D), "bias": draw(V)}
    made |= {"teacher_hidden": draw(N, D + 2), "teacher_weight": draw(V, D + 2)}
    for name in ("hidden", "weight", "bias"):
        made[name].requires_grad_()
    return made | {"target": torch.randint(V, (N,), generator=gen)}


def ours(
    beta: float, teacher: Tensor, ids: Tensor, c: dict[str, Tensor], temperature: float = 1.0
) -> Tensor:
    """Return our loss [n] at GKD's beta, from the teacher's logits."""
    logp, rest, _ = linear_label_logprobs(
        c["hidden"], c["weight"], ids, bias=c["bias"], temperature=temperature
    )
    four = (*buckets_at((teacher / temperature).log_softmax(1), ids), logp, rest)
    if beta == 0:
        return losses.forward_kl(*four)
    return losses.reverse_kl(*four) if beta == 1 else losses.jsd(*four, beta=beta)


def assert_same(got: Tensor, want: Tensor, c: dict[str, Tensor], **tolerance: float) -> None:
    """Compare values, and gradients of hidden, weight and bias."""
    assert want > 1e-2
    torch.testing.assert_close(got, want, check_dtype=False, **tolerance)
    inputs = [c["hidden"], c["weight"], c["bias"]]
    pairs = (torch.autograd.grad(x, inputs) for x in (got, want))
    for g, w in zip(*pairs, strict=True):
        torch.testing.assert_close(g, w, **tolerance)


def dense(c: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the student's logits, the teacher's logits, and ids that cover the vocabulary."""
    student = c["hidden"] @ c["weight"].T + c["bias"]
    return student, c["teacher_hidden"] @ c["teacher_weight"].T, torch.arange(V).repeat(N, 1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_trl_generalized_jsd(beta: float, temperature: float) -> None:
    """At T = 2 with labels of the whole vocabulary, where the tail is determined: it is empty."""
    c = case()
    student, teacher, ids = dense(c)
    want = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
    )
    got = ours(beta, teacher, ids, c, temperature).sum()
    assert_same(got, want, c, atol=1e-10, rtol=1e-10)


def test_trl_at_temperature_two() -> None:
    """TRL leaves T squared out; ours has it once."""
    c = case()
    student, teacher, ids = dense(c)
    want = 4 * GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=0, temperature=2.0, reduction="sum"
    )
    logp, _, _ = linear_label_logprobs(c["hidden"], c["weight"], ids, bias=c["bias"])
    got = losses.renormalized_kl(teacher.log_softmax(1), logp, temperature=2.0).sum()
    assert_same(got, want, c, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_trl_top_k_with_tail(beta: float) -> None:
    """TRL takes the student's top k and gets the tail as 1 - sum: exact enough in float64."""
    c = case()
    student, teacher, _ = dense(c)
    want = _trl_top_k(student, teacher, alpha=beta, tail=True)
    got = ours(beta, teacher, student.topk(K).indices, c)
    assert_same(got.sum(), want.sum(), c, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trl_top_k_renormalized(temperature: float) -> None:
    c = case()
    student, teacher, _ = dense(c)
    want = temperature**2 * _trl_top_k(
        student / temperature, teacher / temperature, alpha=0.0, tail=False
    )
    ids = student.topk(K).indices
    logp, _, _ = linear_label_logprobs(c["hidden"], c["weight"], ids, bias=c["bias"])
    got = losses.renormalized_kl(
        teacher.log_softmax(1).gather(1, ids), logp, temperature=temperature
    )
    assert_same(got.sum(), want.sum(), c, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_liger_fused_linear_jsd(beta: float, temperature: float) -> None:
    """From hidden states, with its cross-entropy, in float32: Liger adds up in that."""
    c = case(torch.float32)
    liger: Any = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.3,
        weight_soft_loss=0.7,
        beta=beta,
        temperature=temperature,
        compiled=False,
        chunk_size=5,
    )
    want = liger(
        c["hidden"], c["weight"], c["teacher_hidden"], c["teacher_weight"], c["target"], c["bias"]
    )
    _, teacher, ids = dense(c)
    _, _, target = linear_label_logprobs(
        c["hidden"], c["weight"], ids, target=c["target"], bias=c["bias"]
    )
    assert target is not None
    hard = losses.cross_entropy(target).mean()
    got = 0.3 * hard + 0.7 * ours(beta, teacher, ids, c, temperature).mean()
    assert_same(got, want, c, atol=2e-5, rtol=2e-4)


def _trl_top_k(student: Tensor, teacher: Tensor, *, alpha: float, tail: bool) -> Tensor:
    return compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=K,
        distillation_alpha=alpha,
        distillation_add_tail=tail,
    )
