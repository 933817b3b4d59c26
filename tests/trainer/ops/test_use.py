"""The op in use: tied weights, torch.compile, and invalid input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.ops.case import D, N, V, dense, make_case, mixed_loss
from trainer.losses import cross_entropy, forward_kl
from trainer.ops import linear_label_logprobs


def test_tied_weight_adds_both_gradients() -> None:
    case = make_case()
    tokens = torch.arange(N)

    def total(op: Any) -> Tensor:
        return mixed_loss(op(case.weight[tokens] * case.hidden, case.weight, case.ids))

    got, want = (
        torch.autograd.grad(total(f), case.weight)[0] for f in (linear_label_logprobs, dense)
    )
    torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


@pytest.mark.slow
def test_breaks_a_compiled_graph_once() -> None:
    """Compile a step, layers before the op and a loss after it: two graphs, same gradients."""
    case = make_case()
    teacher = torch.randn(N, V, dtype=torch.float64).log_softmax(1)
    t, tail = teacher.gather(1, case.ids), teacher.scatter(1, case.ids, -math.inf).logsumexp(1)

    def step(hidden: Tensor) -> Tensor:
        logp, rest, target = linear_label_logprobs(
            (hidden * 2).tanh(), case.weight, case.ids, target=case.target, bias=case.bias
        )
        assert target is not None
        return (forward_kl(t, tail, logp, rest) + cross_entropy(target)).mean()

    torch._dynamo.reset()
    found = torch._dynamo.explain(step)(case.hidden)
    assert found.graph_break_count == 1
    assert found.graph_count == 2
    (want,) = torch.autograd.grad(step(case.hidden), case.hidden)
    (got,) = torch.autograd.grad(torch.compile(step, backend="eager")(case.hidden), case.hidden)
    torch.testing.assert_close(got, want)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "repeated id": ({"ids": torch.tensor([[1, 1]] * N)}, "unique"),
    "id past valid_vocab": ({"ids": torch.full((N, 1), V - 1), "valid_vocab": V - 1}, "0..21"),
    "id below -1": ({"ids": torch.full((N, 1), -2)}, "-1 for padding"),
    "int32 ids": ({"ids": torch.zeros(N, 1, dtype=torch.int32)}, "int64"),
    "ignored target": ({"target": torch.full((N,), -100)}, "-100"),
    "target shape": ({"target": torch.zeros(N, 1, dtype=torch.int64)}, "target must be"),
    "3-d hidden": ({"hidden": torch.zeros(1, N, D)}, "flatten"),
    "integer hidden": ({"hidden": torch.zeros(N, D, dtype=torch.int64)}, "floating"),
    "bias shape": ({"bias": torch.zeros(V, 1)}, "bias"),
    "zero temperature": ({"temperature": 0.0}, "temperature"),
    "nan temperature": ({"temperature": math.nan}, "temperature"),
    "zero scale": ({"scale": 0.0}, "scale"),
    "zero budget": ({"chunk_bytes": 0}, "chunk_bytes"),
    "ranks that differ": ({"low_rank": (torch.zeros(N, 2), torch.zeros(V, 3))}, "low_rank"),
    "low_rank of too few": ({"low_rank": (torch.zeros(1, 2), torch.zeros(V, 2))}, "low_rank"),
    "negative softcap": ({"softcap": -1.0}, "softcap"),
    "zero chunk": ({"chunk_size": 0}, "chunk_size"),
    "valid_vocab past V": ({"valid_vocab": V + 1}, "valid_vocab"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    change, message = BAD[name]
    case = make_case()
    kwargs = {"hidden": case.hidden, "weight": case.weight, "ids": case.ids} | change
    with pytest.raises(ValueError, match=message):
        linear_label_logprobs(**kwargs)


def test_ids_known_to_be_unique_are_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    want, _, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    monkeypatch.setattr(Tensor, "sort", None)
    got, _, _ = linear_label_logprobs(case.hidden, case.weight, case.ids, unique_ids=True)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="-1 for padding"):
        linear_label_logprobs(case.hidden, case.weight, torch.full((N, 1), V), unique_ids=True)
    with pytest.raises(TypeError):
        linear_label_logprobs(case.hidden, case.weight, case.ids)
