"""Values and gradients against dense float64 references, in every setting of the op."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.ops.case import Case, D, K, N, V, dense, extras, make_case, mixed_loss
from trainer.losses import cross_entropy
from trainer.ops import chunked, label_logprobs, linear_label_logprobs

SETTINGS = [
    pytest.param(
        {"temperature": t, "softcap": cap, "scale": scale},
        {"bias": bias, "target": target, "low_rank": low},
        id=f"T{t:g}-cap{cap}-scale{scale:g}-bias{bias}-target{target}-low{low}",
    )
    for t, cap, scale, bias, target, low in itertools.product(
        (1.0, 2.0), (None, 3.0), (1.0, 0.25), (False, True), (False, True), (False, True)
    )
]


@pytest.mark.parametrize(("settings", "has"), SETTINGS)
def test_values_and_gradients_equal_dense(settings: dict[str, Any], has: dict[str, bool]) -> None:
    case = make_case()
    kwargs = settings | extras(case, **has)
    leaves = _leaves(case, has)
    got = linear_label_logprobs(case.hidden, case.weight, case.ids, chunk_size=3, **kwargs)
    want = dense(case.hidden, case.weight, case.ids, **kwargs)
    assert (got[2] is None) == (not has["target"])
    for g, w in zip(got, want, strict=True):
        if g is not None and w is not None:
            torch.testing.assert_close(g, w, atol=1e-12, rtol=0)
    got_grads = torch.autograd.grad(mixed_loss(got), leaves)
    want_grads = torch.autograd.grad(mixed_loss(want), leaves)
    for g, w in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, atol=1e-11, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "has"), SETTINGS)
def test_gradcheck(settings: dict[str, Any], has: dict[str, bool]) -> None:
    case = make_case(n=3, d=3, v=9, k=3)
    names = _names(has)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        now = case._replace(**dict(zip(names, inputs, strict=True)))
        outputs = linear_label_logprobs(
            now.hidden, now.weight, now.ids, chunk_size=2, **settings, **extras(now, **has)
        )
        return tuple(x for x in outputs if x is not None)

    assert torch.autograd.gradcheck(run, tuple(_leaves(case, has)))


def _names(has: dict[str, bool]) -> list[str]:
    names = ["hidden", "weight"] + (["bias"] if has["bias"] else [])
    return names + (["low", "up"] if has["low_rank"] else [])


def _leaves(case: Case, has: dict[str, bool]) -> list[Tensor]:
    return [getattr(case, name) for name in _names(has)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, N, 1000])
def test_invariant_to_chunk_size(chunk_size: int, temperature: float) -> None:
    case = make_case()
    leaves = [case.hidden, case.weight, case.bias]
    results = []
    for size in (None, chunk_size):
        out = linear_label_logprobs(
            case.hidden, case.weight, case.ids, target=case.target, temperature=temperature,
            bias=case.bias, softcap=3.0, chunk_size=size,
        )  # fmt: skip
        results.append((*out, *torch.autograd.grad(mixed_loss(out), leaves)))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("kwargs", "buffers"),
    [
        ({}, 1),
        ({"softcap": 3.0}, 2),
        ({"target": True}, 1),
        ({"target": True, "temperature": 2.0}, 2),
        ({"target": True, "temperature": 2.0, "softcap": 3.0}, 3),
    ],
)
@pytest.mark.parametrize("by_argument", [False, True])
def test_chunk_size_follows_the_memory_budget(
    kwargs: dict[str, Any], buffers: int, by_argument: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows of logits fit the budget: all buffers of a chunk together must not exceed it."""
    case = make_case(dtype=torch.float32)
    if kwargs.get("target"):
        kwargs = kwargs | {"target": case.target}
    heights: list[int] = []
    logits = chunked.chunk_logits

    def spy(rows: slice, *args: Any, out: Tensor) -> None:
        heights.append(len(out))
        logits(rows, *args, out=out)

    monkeypatch.setattr(chunked, "chunk_logits", spy)
    if by_argument:
        kwargs = kwargs | {"chunk_bytes": 6 * V * 4}
    else:
        monkeypatch.setattr(label_logprobs, "CHUNK_BYTES", 6 * V * 4)
    out = linear_label_logprobs(case.hidden, case.weight, case.ids, **kwargs)
    assert heights[0] == 6 // buffers
    assert sum(heights) == N
    forward = len(heights)
    mixed_loss(out).backward()
    assert heights[forward:] == heights[:forward]


def test_valid_vocab_equals_slicing_the_weight() -> None:
    valid = V - 6
    case = make_case()
    ids = make_case(v=valid).ids
    target = torch.arange(N) % valid
    outs, grads = [], []
    for weight, bias, kwargs in (
        (case.weight, case.bias, {"valid_vocab": valid}),
        (case.weight[:valid], case.bias[:valid], {}),
    ):
        out = linear_label_logprobs(
            case.hidden, weight, ids, target=target, bias=bias, temperature=2.0, **kwargs
        )
        outs.append(out)
        grads.append(torch.autograd.grad(mixed_loss(out), [case.hidden, case.weight, case.bias]))
    for a, b in zip([*outs[0], *grads[0]], [*outs[1], *grads[1]], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert (grads[0][1][valid:] == 0).all()
    assert (grads[0][1][:valid] != 0).any()
    full = linear_label_logprobs(case.hidden, case.weight, ids, bias=case.bias, temperature=2.0)
    assert (full[1] - outs[0][1]).abs().max() > 1e-3  # the mask mattered


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("with_id_zero", [False, True])
def test_padded_ids_equal_dropped_ids(with_id_zero: bool, temperature: float) -> None:
    """Rows with 0..k real ids in one batch give the same values as each row alone, unpadded."""
    case = make_case(n=K + 1, seed=3)
    ids = case.ids.clone()
    ids[ids == 0] = next(i for i in range(1, V) if not (ids == i).any())
    if with_id_zero:  # the id that padding could be mistaken for
        ids[:, 0] = 0
    for row in range(K + 1):
        ids[row, torch.arange(K).roll(row)[row:]] = -1  # padding anywhere, not only at the end
    assert [int((r >= 0).sum()) for r in ids] == list(range(K + 1))
    kwargs: dict[str, Any] = {"target": case.target, "bias": case.bias}
    kwargs["temperature"] = temperature
    logp, log_rest, ce = linear_label_logprobs(case.hidden, case.weight, ids, **kwargs)
    assert torch.equal(logp == -math.inf, ids < 0)
    got = (logp * 0.7).masked_fill(ids < 0, 0).sum() + (log_rest * -1.3).sum() + ce.sum()  # type: ignore[union-attr]
    want = torch.zeros((), dtype=torch.float64)
    for row in range(K + 1):
        real = ids[row][ids[row] >= 0][None]
        alone = dense(
            case.hidden[row : row + 1], case.weight, real,
            **kwargs | {"target": case.target[row : row + 1]},
        )  # fmt: skip
        torch.testing.assert_close(logp[row][ids[row] >= 0], alone[0][0], atol=1e-12, rtol=0)
        torch.testing.assert_close(log_rest[row], alone[1][0], atol=1e-12, rtol=0)
        want = want + (alone[0] * 0.7).sum() + (alone[1] * -1.3).sum() + alone[2].sum()  # type: ignore[union-attr]
    leaves = [case.hidden, case.weight, case.bias]
    pairs = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True)
    for g, w in pairs:
        torch.testing.assert_close(g, w, atol=1e-11, rtol=0)


def test_gradient_arriving_at_padding_is_dropped() -> None:
    case = make_case()
    ids = case.ids.clone()
    ids[:, 2] = -1
    logp, _, _ = linear_label_logprobs(case.hidden, case.weight, ids)
    seed = torch.ones_like(logp)
    clean = torch.autograd.grad(logp, case.hidden, seed.masked_fill(ids < 0, 0), retain_graph=True)
    dirty = torch.autograd.grad(logp, case.hidden, seed.masked_fill(ids < 0, math.nan))
    assert torch.equal(clean[0], dirty[0])
    assert clean[0].abs().max() > 1e-3


def test_gradient_of_an_empty_rest_is_dropped() -> None:
    case = make_case(k=V)
    logp, log_rest, _ = linear_label_logprobs(case.hidden, case.weight, case.ids)
    clean = torch.autograd.grad(logp[:, 0].sum(), case.hidden, retain_graph=True)[0]
    for bad in (5.0, math.inf, math.nan):
        seeds = [torch.ones(N, dtype=torch.float64), torch.full((N,), bad, dtype=torch.float64)]
        dirty = torch.autograd.grad([logp[:, 0], log_rest], case.hidden, seeds, retain_graph=True)
        assert torch.equal(dirty[0], clean)


def test_no_ids_leaves_plain_cross_entropy() -> None:
    case = make_case(k=0)
    logp, log_rest, ce = linear_label_logprobs(
        case.hidden, case.weight, case.ids, target=case.target
    )
    assert ce is not None
    assert logp.shape == (N, 0)
    torch.testing.assert_close(log_rest, torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)
    logits = case.hidden @ case.weight.T
    want = torch.nn.functional.cross_entropy(logits, case.target, reduction="none")
    torch.testing.assert_close(cross_entropy(ce), want)
    got_grad, want_grad = (
        torch.autograd.grad(x.sum(), case.weight) for x in (cross_entropy(ce), want)
    )
    torch.testing.assert_close(got_grad[0], want_grad[0])


def test_empty_batch() -> None:
    case = make_case(n=0)
    out = linear_label_logprobs(
        case.hidden, case.weight, case.ids, target=case.target, bias=case.bias, softcap=2.0
    )
    assert [tuple(x.shape) for x in out if x is not None] == [(0, K), (0,), (0,)]
    grads = torch.autograd.grad(mixed_loss(out), [case.hidden, case.weight, case.bias])
    assert [tuple(g.shape) for g in grads] == [(0, D), (V, D), (V,)]
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    out = linear_label_logprobs(case.hidden, case.weight, case.ids, bias=case.bias)
    names = [x for x in ("hidden", "weight", "bias") if x != frozen]
    want = torch.autograd.grad(mixed_loss(out), [getattr(case, x) for x in names])

    seen: list[list[bool]] = []
    backward = chunked.project_backward

    def spy(g: Tensor, h: Tensor, w: Tensor, grad_h: Tensor | None, grad_w: Tensor | None) -> None:
        seen.append([grad_h is None, grad_w is None])
        backward(g, h, w, grad_h, grad_w)

    monkeypatch.setattr(chunked, "project_backward", spy)
    cold = case._replace(**{frozen: getattr(case, frozen).detach()})
    out = linear_label_logprobs(cold.hidden, cold.weight, cold.ids, bias=cold.bias)
    got = torch.autograd.grad(mixed_loss(out), [getattr(cold, x) for x in names])
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    assert seen == [[frozen == "hidden", frozen == "weight"]]
