"""Exact divergences from states and a head, against online distillation on whole logits."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.dense import ALPHA, BETA, DENSE
from tests.trainer.ops.case import make_case
from tests.trainer.ops.test_devices import relative
from trainer.ops.dense_divergence import Divergence, TeacherHead, linear_divergence

MIXING = {"jsd": BETA, "skew_kl": ALPHA, "skew_reverse_kl": ALPHA}
N, D, V, WIDTH = 33, 12, 211, 20


def teacher(dtype: torch.dtype = torch.float64, vocab: int = V) -> tuple[Tensor, TeacherHead]:
    """Return states [N, WIDTH] and a head with everything that a head can have."""
    gen = torch.Generator().manual_seed(1)
    states, weight, bias = (
        torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)
        for shape in ((N, WIDTH), (vocab, WIDTH), (vocab,))
    )
    return states, TeacherHead(weight=weight, bias=bias, scale=0.5, softcap=8.0)


def capped(z: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def online(
    case: tuple[Tensor, ...], states: Tensor, head: TeacherHead, name: str, *, temperature: float,
    scale: float, softcap: float | None, vocab: int,
) -> Tensor:  # fmt: skip
    """Return T^2 D(Q, P) with materialized logits in float64, by plain autograd."""
    hidden, weight, bias, low, up = (x.double() for x in case)
    z = capped(hidden @ weight.T + low @ up.T + bias, scale, softcap)[:, :vocab]
    assert head.bias is not None
    z_t = states.double() @ head.weight.double().T + head.bias.double()
    z_t = capped(z_t, head.scale, head.softcap)[:, :vocab]
    q, p = ((x / temperature).softmax(1) for x in (z_t, z))
    return temperature**2 * DENSE[name](q, p)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DENSE)
def test_values_and_gradients_equal_online_distillation(
    name: Divergence, dtype: torch.dtype, softcap: float | None, temperature: float
) -> None:
    """The student's vocabulary is padded, has an adapter and a bias; chunks do not divide n."""
    case = make_case(n=N, d=D, v=V + 5, dtype=dtype)
    ours = [x.detach().requires_grad_() for x in case[:5]]
    exact = [x.detach().double().requires_grad_() for x in ours]
    states, head = teacher(torch.float32 if dtype == torch.bfloat16 else dtype)
    settings = {"temperature": temperature, "scale": 0.7, "softcap": softcap}
    found = linear_divergence(
        ours[0], ours[1], states, head, divergence=name, mixing=MIXING.get(name, 0.5),
        bias=ours[2], low_rank=(ours[3], ours[4]), chunk_size=7, valid_vocab=V - 3, **settings,
    )  # fmt: skip
    want = online(tuple(exact), states, head, name, vocab=V - 3, **settings)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value, gradient = {
        torch.float64: (1e-12, 1e-11), torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-5, 4e-3),
    }[dtype]  # fmt: skip  # a gradient is rounded to bfloat16 at the end: by up to 1 / 256
    assert relative(found, want) < value
    weights = torch.linspace(-1, 2, N)
    got = torch.autograd.grad((found * weights).sum(), ours)
    expected = torch.autograd.grad((want * weights).sum(), exact)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) < gradient
    assert not got[1][V - 3 :].any()


def test_only_what_needs_a_gradient_gets_one() -> None:
    case, (states, head) = make_case(n=N, d=D, v=V), teacher()
    frozen = case.weight.detach()
    linear_divergence(case.hidden, frozen, states, head).sum().backward()
    assert case.hidden.grad is not None
    assert frozen.grad is None


def test_no_position_gives_no_value_and_zero_gradients() -> None:
    case, (states, head) = make_case(n=0, d=D, v=V), teacher()
    found = linear_divergence(case.hidden, case.weight, states[:0], head)
    assert found.shape == (0,)
    found.sum().backward()
    assert case.weight.grad is not None
    assert not case.weight.grad.any()


def test_equal_sides_have_no_divergence_and_no_gradient() -> None:
    states, head = teacher()
    assert head.bias is not None
    for name in DENSE:
        hidden = states.clone().requires_grad_()
        found = linear_divergence(
            hidden, head.weight, states, head, divergence=name, bias=head.bias,  # type: ignore[arg-type]
            scale=head.scale, softcap=head.softcap,
        )  # fmt: skip
        assert found.abs().max() < 1e-12
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"divergence": "kl"}, "there is no divergence 'kl'"),
        ({"divergence": "jsd", "mixing": 1.0}, "mixing must be above 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"softcap": math.inf}, "softcap must be positive"),
        ({"valid_vocab": V + 1}, "valid_vocab must be in 1.."),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], reason: str) -> None:
    case, (states, head) = make_case(n=N, d=D, v=V), teacher()
    with pytest.raises(ValueError, match=reason):
        linear_divergence(case.hidden, case.weight, states, head, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="states must be"):
        linear_divergence(case.hidden, case.weight, states[:, :-1], head)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_and_a_twentieth_of_two_logits() -> None:
    """Of fresh processes, at V = 151,936; two materialized logits of 2,048 tokens take 2.5 GB."""

    def peak(n: int) -> int:
        command = [sys.executable, "-m", "benchmarks.op_memory", "--measure", "exact", str(n), "16"]
        runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(2)]
        return min(int(run.stdout) for run in runs)

    few, many = peak(64), peak(256)
    spare = 2**26  # the C library's, from run to run
    assert many < few + spare
    assert many < 2 * 4 * 2048 * 151_936 / 20
