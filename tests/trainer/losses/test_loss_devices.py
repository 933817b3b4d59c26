"""Every loss through the op, on every device and in every precision: values and gradients."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from tests.trainer.devices import DEVICES
from trainer.data.collate import Batch
from trainer.losses.batch_loss import batch_loss
from trainer.losses.loss_table import LOSSES
from trainer.losses.objective import LossTerm, Objective
from trainer.ops import linear_label_logprobs
from trainer.student.student_output import StudentOutput

N, D, V, K = 40, 64, 700, 12
OF_LABELS = [n for n, loss in LOSSES.items() if loss.inputs not in ("router", "exact", "states")]
"""Losses that read what `linear_label_logprobs` makes; test_exact_training.py has exact ones."""
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}


class Labels:
    """The parts of a batch that losses read."""

    def __init__(self, teacher: Tensor, ids: Tensor, targets: Tensor, device: str) -> None:
        rest = teacher.scatter(1, ids, -torch.inf).logsumexp(1)
        self.topk_logprobs, self.tail_logprob = teacher.gather(1, ids).to(device), rest.to(device)
        self.drawn_counts = torch.arange(K).expand(N, K).to(device)
        self.topk_ids, self.targets = ids.to(device), targets.to(device)

    @property
    def batch(self) -> Batch:
        return cast(Batch, self)


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_gradients_equal_float64(device: str, precision: str, name: str) -> None:
    """In bf16, op and losses run inside autocast over float32 inputs, as in training."""
    gen = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=gen)
    weight = torch.randn(V, D, generator=gen) * 0.3
    teacher = (2 * torch.randn(N, V, generator=gen, dtype=torch.float64)).log_softmax(1)
    ids = teacher.topk(K).indices
    targets = torch.randint(V, (N,), generator=gen)
    objective = Objective(terms=(LossTerm(name=name, start=1, stop=1),), temperature=1.0)

    def run(dtype: torch.dtype, place: str, autocast: bool) -> tuple[Tensor, ...]:
        labels = Labels(teacher.to(dtype), ids, targets, place)
        leaves = [x.to(place, dtype).requires_grad_() for x in (hidden, weight)]
        with torch.autocast(place, torch.bfloat16, enabled=autocast):
            logp, rest, ce = linear_label_logprobs(*leaves, labels.topk_ids, target=labels.targets)
            assert ce is not None
            output = StudentOutput(logp, rest, ce, drawn_logp=logp)
            weights = torch.ones(N, device=place)
            loss, _ = batch_loss(objective, output, labels.batch, weights, [1.0])
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    found = run(torch.float32, device, precision == "bf16")
    expected = run(torch.float64, "cpu", False)
    assert found[0].dtype == torch.float32
    assert expected[0] > 1
    for ours, exact in zip(found, expected, strict=True):
        difference = (ours.cpu().double() - exact).norm() / exact.norm()
        assert difference < TOLERANCE[precision]
