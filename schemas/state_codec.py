"""Codecs of hidden states: `states/1` is float16; `states/2` spends its bytes where the head looks.

A head reads a few directions of a state closely and others hardly at all. `states/2` measures both
on a sample. The Fisher matrix F of the head's distributions says that a small error e costs a KL of
e^T F e / 2. In coordinates F^(1/2) (h - mean), a step therefore costs the same KL in any direction.
They are rotated to their principal axes (a Karhunen-Loeve transform), so that the last axes are
mostly 0, and rounded to one step.

A state is stored as a cell of bytes, one per axis (`states/2`) or two per dimension (`states/1`).
Parquet splits the cells of a page into planes (BYTE_STREAM_SPLIT of fixed-size binary), so that
zstd sees all values of one axis together. Specification: docs/format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import parquet_options
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.arrow_lists import list_offsets, one_array

Real = TypeVar("Real", bound=np.floating)

STATES_1 = "states/1"
STATES_2 = "states/2"
DEFAULT_KL = 1e-3
"""Mean KL, in nats, that the step of `states/2` aims at."""

STATES = "states"
FAR = "far"
ESCAPE = -128
"""The byte of a code outside [-127, 127], which stands in the column `far`."""
ZSTD_LEVEL = 6
"""1 % smaller at the default step than level 3, 11 % at the coarse one, in twice the time."""
RIDGE = 1e-9
"""Share of F's mean eigenvalue added to all: directions that the head ignores stay finite."""
ZERO = 0.6
"""Coordinates nearer to 0 than so many steps become 0: at one KL, 5 % fewer bytes at a coarse step,
and as many at the default one."""
SEARCH_STEPS = 30
SEARCH_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class StateBasis:
    """The axes of `states/2`, once per set; d dimensions and as many axes, by falling variance.

    Attributes:
        mean: float32 [d], of the sample.
        analysis: float32 [d, d], from states to coordinates.
        synthesis: float32 [d, d], its inverse.
        step: size of a code in coordinates.
    """

    mean: NDArray[np.float32]
    analysis: NDArray[np.float32]
    synthesis: NDArray[np.float32]
    step: float

    def codes(self, states: NDArray[np.floating]) -> NDArray[np.int32]:
        """Return the codes [n, d] of states [n, d].

        Raises:
            ValueError: a state is not finite, or too far from the sample for an int32.
        """
        scaled = (states.astype(np.float32) - self.mean) @ (self.analysis / np.float32(self.step))
        if not (np.abs(scaled) < 1 << 31).all():
            raise ValueError("a hidden state is not finite, or far outside the sample's range")
        return _rounded(scaled).astype(np.int32)

    def states(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the states, float32 [n, d], of codes [n, d]."""
        return codes.astype(np.float32) @ (self.synthesis * np.float32(self.step)) + self.mean


def fit_basis(states: NDArray[np.floating], fisher: NDArray[np.floating]) -> StateBasis:
    """Fit the axes of `states/2`, with a step of 1; `with_step` chooses one.

    Args:
        states: [n, d], a sample of a set's states.
        fisher: [d, d], E[W^T (diag p - p p^T) W] over the sample (`labeler` computes it).

    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    n, d = states.shape
    if fisher.shape != (d, d) or not n:
        raise ValueError(f"states {states.shape} and fisher {fisher.shape} do not fit")
    if not (np.isfinite(states).all() and np.isfinite(fisher).all()):
        raise ValueError("the sample of hidden states, or its Fisher matrix, is not finite")
    exact, fisher = states.astype(np.float64), fisher.astype(np.float64)
    values, vectors = np.linalg.eigh((fisher + fisher.T) / 2)
    ridge = RIDGE * max(values.mean(), np.finfo(np.float32).tiny)
    root = np.sqrt(np.maximum(values, 0) + ridge)
    whiten, restore = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    mean = exact.mean(0)
    white = (exact - mean) @ whiten
    axes = np.linalg.eigh(white.T @ white / n)[1][:, ::-1]
    return StateBasis(
        mean=mean.astype(np.float32),
        analysis=(whiten @ axes).astype(np.float32),
        synthesis=(axes.T @ restore).astype(np.float32),
        step=1.0,
    )


def with_step(basis: StateBasis, states: NDArray[np.floating], kl: float) -> StateBasis:
    """Return the basis with the largest step whose mean KL over a sample is at most `kl`.

    The KL is half the squared error in coordinates, as the Fisher matrix has it.

    Args:
        basis: of `fit_basis`.
        states: [n, d]; at most `SEARCH_ROWS` of them are used.
        kl: in nats.

    Raises:
        ValueError: `kl` is not above 0, or more than it costs to store nothing but the mean.
    """
    if not kl > 0:
        raise ValueError(f"a KL of {kl:g} has no step: it must be above 0")
    some = states[:: -(-len(states) // SEARCH_ROWS)].astype(np.float64)
    coordinates = (some - basis.mean) @ basis.analysis.astype(np.float64)
    worst = float((coordinates**2).sum(1).mean() / 2)
    if kl >= worst:
        raise ValueError(f"a KL of {kl:g} is more than the {worst:.2g} of storing no state at all")
    low, high = 1e-6 * kl**0.5, 4 * float(np.abs(coordinates).max())
    for _ in range(SEARCH_STEPS):
        step = (low * high) ** 0.5
        error = coordinates - step * _rounded(coordinates / step)
        if (error**2).sum(1).mean() / 2 <= kl:
            low = step
        else:
            high = step
    return replace(basis, step=low)


def cell_bytes(dimensions: int, basis: StateBasis | None) -> int:
    """Return the bytes of a stored state before compression."""
    return dimensions if basis is not None else 2 * dimensions


def encode_states(
    rows: Sequence[NDArray[np.floating]], dimensions: int, basis: StateBasis | None = None
) -> dict[str, pa.Array]:
    """Encode the states of rows as the columns `states` and `far`, one Arrow list per row.

    Args:
        rows: [n, d] of each row.
        dimensions: d.
        basis: of `states/2`; None for `states/1`.

    Raises:
        ValueError: a state is not finite or, for `states/1`, outside float16.
    """
    lengths = [len(row) for row in rows]
    joined = np.concatenate([*rows, np.empty((0, dimensions), np.float32)])
    far, far_lengths = np.empty(0, np.int32), np.zeros(len(rows), np.int64)
    if basis is None:
        with np.errstate(over="ignore"):  # checked below
            half = joined.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError("a hidden state is not finite in float16")
        cells = half.astype("<f2").view(np.uint8).reshape(len(half), dimensions, 2)
        cells = cells.transpose(0, 2, 1)  # all low bytes, then all high ones: they differ in kind
    else:
        codes = basis.codes(joined)
        outside = np.abs(codes) > 127
        far = codes[outside]
        ends = np.cumsum([0, *lengths])
        far_lengths = np.diff(np.concatenate([[0], np.cumsum(outside.sum(1))])[ends])
        cells = np.where(outside, ESCAPE, codes).astype(np.int8).view(np.uint8)
    width = cell_bytes(dimensions, basis)
    stored = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(joined), [None, pa.py_buffer(np.ascontiguousarray(cells))]
    )
    return {
        STATES: pa.ListArray.from_arrays(_offsets(lengths), stored),
        FAR: pa.ListArray.from_arrays(_offsets(far_lengths), as_arrow(far)),
    }


def decode_codes(table: pa.Table) -> NDArray[np.int32] | NDArray[np.int8]:
    """Return the codes [n, d] of the rows of a `states/2` table, concatenated; int8 where they fit.

    Raises:
        ValueError: `far` does not hold as many codes as the cells have escapes, or holds one that
            belongs into a cell.
    """
    codes = _cells(table).view(np.int8)
    far = as_numpy(one_array(table[FAR]).flatten())
    places = np.flatnonzero(codes == ESCAPE)
    if len(places) != len(far) or (np.abs(far.astype(np.int64)) <= 127).any():
        raise ValueError(f"{len(far)} far codes do not fit {len(places)} escapes")
    if not len(far):
        return codes
    wide = codes.astype(np.int32)
    wide.reshape(-1)[places] = far
    return wide


def decode_states(table: pa.Table, basis: StateBasis | None = None) -> NDArray[np.float32]:
    """Return the states of rows, concatenated, float32 [n, d]; the inverse of `encode_states`.

    Raises:
        ValueError: the columns contradict each other or the basis.
    """
    if basis is not None:
        codes = decode_codes(table)
        if codes.shape[1] != len(basis.mean):
            raise ValueError(f"{codes.shape[1]} codes per state, the basis has {len(basis.mean)}")
        return basis.states(codes)
    cells = _cells(table)
    planes = cells.reshape(len(cells), 2, cells.shape[1] // 2).transpose(0, 2, 1)
    return np.ascontiguousarray(planes).view("<f2")[:, :, 0].astype(np.float32)


def label_offsets(table: pa.Table) -> NDArray[np.int64]:
    """Return the offsets [rows + 1] of each row's states in what `decode_states` returns."""
    return list_offsets(one_array(table[STATES]))


def state_fields(dimensions: int, basis: StateBasis | None = None) -> list[pa.Field]:
    """Return the fields of `encode_states`."""
    return [
        pa.field(STATES, pa.list_(pa.binary(cell_bytes(dimensions, basis))), nullable=False),
        pa.field(FAR, pa.list_(pa.int32()), nullable=False),
    ]


def states_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a Parquet writer that splits the bytes of states into planes."""
    options = parquet_options(schema, dictionary=[])
    options["use_byte_stream_split"] = [f"{name}.list.element" for name in (STATES, FAR)]
    options["compression_level"][f"{STATES}.list.element"] = ZSTD_LEVEL
    return pq.ParquetWriter(path, schema, **options)


def _rounded(steps: NDArray[Real]) -> NDArray[Real]:
    """Return whole numbers of steps, of the same dtype."""
    whole: NDArray[Real] = np.rint(steps)
    whole[np.abs(steps) < ZERO] = 0
    return whole


def _cells(table: pa.Table) -> NDArray[np.uint8]:
    """Return the bytes of all states, [n, width]."""
    column = one_array(table[STATES])
    if column.null_count:
        raise ValueError(f"column {STATES} has nulls")
    cells = column.flatten()
    if not pa.types.is_fixed_size_binary(cells.type) or cells.null_count:
        raise ValueError(f"column {STATES} does not hold cells of one size")
    width = cells.type.byte_width
    data = np.frombuffer(cells.buffers()[1] or b"", np.uint8)
    return data[cells.offset * width : (cells.offset + len(cells)) * width].reshape(-1, width)


def _offsets(lengths: Sequence[int] | NDArray[np.int64]) -> pa.Array:
    return as_arrow(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))
