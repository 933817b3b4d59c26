"""Codecs of hidden states: exact to the stated error, small, and strict about what they read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from schemas.file_names import FINAL
from schemas.state_codec import (
    ESCAPE,
    StateBasis,
    decode_codes,
    decode_states,
    encode_states,
    far_column,
    fit_basis,
    label_offsets,
    state_fields,
    states_writer,
    with_step,
)
from schemas.version import STATES_1, STATES_2

D = 24


def sample(n: int = 600, seed: int = 0) -> NDArray[np.float32]:
    """Return states [n, D] that are correlated, off-center, and of very different scales."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(D, D)) * np.geomspace(30, 0.01, D)
    return (rng.normal(size=(n, D)) @ mixing + 5).astype(np.float32)


def metric() -> NDArray[np.float64]:
    """Return a Fisher matrix of rank 5, less than D."""
    rows = np.random.default_rng(3).normal(size=(5, D)) * 0.1
    return rows.T @ rows


def fitted(step: float = 0.01) -> StateBasis:
    return replace(fit_basis(sample(), metric()), step=step)


def cost(error: NDArray[np.floating]) -> float:
    """Return the mean KL of errors [n, D] as the metric has it."""
    return float(np.einsum("ni,ij,nj->n", error, metric(), error).mean() / 2)


@pytest.mark.parametrize("compressed", [False, True])
def test_states_come_back_through_a_file(tmp_path: Path, compressed: bool) -> None:
    """Rows of any length, empty ones included; float16 loses its rounding and nothing else."""
    basis = fitted() if compressed else None
    rows = [sample(5, 1), sample(0), sample(3, 2)]
    schema = pa.schema(state_fields(D, STATES_2 if compressed else STATES_1))
    with states_writer(tmp_path / "part.parquet", schema) as writer:
        writer.write_table(pa.table(encode_states(rows, D, basis), schema=schema))
    table = pq.read_table(tmp_path / "part.parquet", page_checksum_verification=True)
    assert label_offsets(table).tolist() == [0, 5, 5, 8]
    found, exact = decode_states(table, basis), np.concatenate(rows)
    assert found.dtype == np.float32
    if basis is None:
        assert np.array_equal(found, exact.astype(np.float16).astype(np.float32))
    else:
        assert np.array_equal(decode_codes(table), basis.codes(exact))
        np.testing.assert_allclose(found, basis.states(basis.codes(exact)), atol=1e-3)
    np.testing.assert_allclose(decode_states(table.slice(2), basis), found[5:], atol=1e-3)


def test_one_step_costs_the_same_in_every_direction() -> None:
    """Errors in coordinates are at most half a step, near 0 a little more."""
    basis, states = fitted(step=0.02), sample(2000, 5)
    error = basis.states(basis.codes(states)) - states
    coordinates = error.astype(np.float64) @ basis.analysis
    assert np.abs(coordinates).max() < 0.02 * 0.61
    active = np.abs((states - basis.mean) @ basis.analysis).max(0) > 0.1
    assert 4 <= active.sum() <= 10  # the rank of the metric, and directions where the ridge shows
    np.testing.assert_allclose((coordinates[:, active] ** 2).mean(0), 0.02**2 / 12, rtol=0.15)


def test_coordinates_near_zero_become_zero() -> None:
    plain = np.eye(4, dtype=np.float32)
    basis = StateBasis(mean=np.zeros(4, np.float32), analysis=plain, synthesis=plain, step=2.0)
    near = np.array([[1.19, -1.19, 1.21, -1.21], [2.9, -2.9, 3.1, -3.1]], np.float32)
    assert basis.codes(near).tolist() == [[0, 0, 1, -1], [1, -1, 2, -2]]


def test_axes_stand_in_order_of_variance_and_invert() -> None:
    basis = fitted()
    np.testing.assert_allclose(basis.analysis @ basis.synthesis, np.eye(D), atol=2e-3)
    spread = ((sample() - basis.mean) @ basis.analysis).var(0)
    assert (np.diff(spread) <= 1e-6 * spread[0]).all()


@pytest.mark.parametrize("kl", [1e-4, 1e-2])
def test_the_step_costs_the_kl_that_was_asked_for(kl: float) -> None:
    basis = with_step(fit_basis(sample(), metric()), sample(), kl)
    other = sample(2000, 5)
    assert cost(basis.states(basis.codes(other)) - other) == pytest.approx(kl, rel=0.15)


def test_a_step_that_no_kl_has_is_refused() -> None:
    basis = fit_basis(sample(), metric())
    with pytest.raises(ValueError, match="must be above 0"):
        with_step(basis, sample(), 0.0)
    with pytest.raises(ValueError, match="storing no state at all"):
        with_step(basis, sample(), 1e6)


def test_codes_beyond_a_byte_are_kept() -> None:
    """-127 and 127 fit a byte; -128 and 128 do not, and -128 is the mark of those."""
    plain = np.eye(2, dtype=np.float32)
    basis = StateBasis(mean=np.zeros(2, np.float32), analysis=plain, synthesis=plain, step=1.0)
    exact = np.array([[127, -127], [128, -128], [-3e6, 0]], np.float32)
    table = pa.table(encode_states([exact[:1], exact[1:]], 2, basis))
    assert table[far_column(FINAL)].to_pylist() == [[], [128, -128, -3_000_000]]
    assert decode_codes(table.slice(0, 1)).dtype == np.int8
    assert np.array_equal(decode_states(table, basis), exact)
    assert np.array_equal(decode_states(table.slice(1), basis), exact[1:])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_states_that_cannot_be_stored_are_refused(compressed: bool, value: float) -> None:
    states = sample(4)
    states[2, 3] = value
    with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"):
        encode_states([states], D, fitted() if compressed else None)


def test_a_sample_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fit_basis(sample(), np.eye(D - 1))
    with pytest.raises(ValueError, match="do not fit"):
        fit_basis(sample(0), metric())
    with pytest.raises(ValueError, match="not finite"):
        fit_basis(sample(), metric() * np.nan)


def test_far_codes_that_contradict_the_cells_are_refused() -> None:
    basis = fitted()
    table = pa.table(encode_states([sample(3)], D, basis))
    more = pa.array([[1000]], pa.list_(pa.int32()))
    at = table.column_names.index(far_column(FINAL))
    with pytest.raises(ValueError, match="far codes do not fit"):
        decode_states(table.set_column(at, far_column(FINAL), more), basis)
    cells = pa.array([[bytes([ESCAPE % 256]) + bytes(D - 1)]], table[FINAL].type)
    small = pa.table({FINAL: cells, far_column(FINAL): pa.array([[5]], pa.list_(pa.int32()))})
    with pytest.raises(ValueError, match="far codes do not fit"):
        decode_states(small, basis)
    narrow = replace(basis, mean=basis.mean[:-1])
    with pytest.raises(ValueError, match="the basis has 23"):
        decode_states(table, narrow)


def test_a_set_without_rows_is_empty() -> None:
    for basis in (None, fitted()):
        table = pa.table(encode_states([], D, basis))
        assert decode_states(table, basis).shape == (0, D)
