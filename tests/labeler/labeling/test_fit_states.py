"""The basis of stored states for a head: its Fisher matrix, and the exact KL that a step leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labeler.labeling.engines import fit_states
from labeler.labeling.engines.fit_states import OutputHead, fisher, kl_left
from schemas.state_codec import fit_basis, with_step

D, V = 12, 300


def head(softcap: float | None = None) -> OutputHead:
    """Return a head that reads some directions of a state far more closely than others."""
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, generator=gen) * torch.logspace(0, -2, D)
    bias = torch.randn(V, generator=gen)
    return OutputHead(weight=weight, bias=bias, scale=0.8, softcap=softcap)


def states(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32) * 2


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_fisher_is_the_curvature_of_the_kl(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the KL of small errors by the head itself; the states come in several parts."""
    monkeypatch.setattr(fit_states, "LOGIT_BYTES", 4 * V * 7)
    some, cap = states(50), head(softcap)
    exact = OutputHead(
        weight=cap.weight.double(), bias=cap.bias, scale=cap.scale, softcap=cap.softcap
    )
    matrix = fisher(cap, some)
    assert matrix.shape == (D, D)
    for axis in (0, 5):
        error = np.zeros(D, np.float32)
        error[axis] = 0.05
        ends = (kl_left(exact, some, some + sign * error).mean() for sign in (1, -1))
        curvature = sum(ends)  # both signs: the third order cancels
        assert curvature == pytest.approx(error @ matrix @ error, rel=5e-3)


def test_the_exact_kl_of_equal_states_is_zero_and_grows_with_the_error() -> None:
    some = states(9)
    assert np.abs(kl_left(head(), some, some)).max() == 0
    near, far = (kl_left(head(), some, some + np.float32(e)) for e in (0.1, 0.5))
    assert near.shape == (9,)
    assert (far > near).all()
    assert len(kl_left(head(), some[:0], some[:0])) == 0


@pytest.mark.parametrize("kl", [1e-3, 0.05])
def test_a_fitted_basis_leaves_the_kl_that_was_asked_for(kl: float) -> None:
    """On other states; the first-order step alone is further off at the coarse one."""
    basis = fit_states.fit_states(head(), states(2000), kl=kl)
    other = states(2000, seed=1)
    left = kl_left(head(), other, basis.states(basis.codes(other))).mean()
    assert left == pytest.approx(kl, rel=0.1)
    first = with_step(fit_basis(states(2000), fisher(head(), states(2000))), states(2000), kl)
    assert basis.step == pytest.approx(first.step, rel=0.3)


def test_equal_bytes_keep_more_in_a_fisher_basis_than_in_plain_axes() -> None:
    """At one KL, its codes have the smaller entropy: what the head ignores costs nothing."""
    some = states(2000)
    axes = fit_basis(some, np.eye(D))

    def bits(codes: NDArray[np.int32]) -> float:
        shares = (np.unique(column, return_counts=True)[1] / len(codes) for column in codes.T)
        return float(sum(-(share * np.log2(share)).sum() for share in shares))

    aware = fit_states.fit_states(head(), some, kl=1e-2)
    plain = next(
        found
        for step in np.geomspace(2, 0.01, 60)
        if kl_left(
            head(), some, (found := replace(axes, step=float(step))).states(found.codes(some))
        ).mean()
        < 1e-2
    )
    assert bits(aware.codes(some)) < 0.7 * bits(plain.codes(some))


def test_a_sample_smaller_than_its_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=f"give at least {4 * D}"):
        fit_states.fit_states(head(), states(4 * D - 1), kl=1e-3)
