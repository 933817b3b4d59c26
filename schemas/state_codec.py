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
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import LIST_ITEM, parquet_options
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.arrow_lists import list_offsets, one_array
from schemas.file_names import FAR_SUFFIX, FINAL, LAYER
from schemas.version import STATE_CODECS, STATES_1, STATES_2

Real = TypeVar("Real", bound=np.floating)

DEFAULT_KL = 1e-3
"""Mean KL, in nats, that the step of `states/2` aims at."""

CODEC = b"codec"
"""Key of the codec in the metadata of a layer's field."""
ESCAPE = -128
"""The byte of a code outside [-127, 127], which stands in the layer's column of far codes."""
ZSTD_LEVEL = 6
"""1 % smaller at the default step than level 3, 11 % at the coarse one, in twice the time."""
RIDGE = 1e-9
"""Share of F's mean eigenvalue added to all: directions that the head ignores stay finite."""
ZERO = 0.6
"""Coordinates nearer to 0 than so many steps become 0: at one KL, 5 % fewer bytes at a coarse step,
and as many at the default one."""
FIT_ROWS = 4096
"""Rows of a sample that are taken to float64 at a time."""
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
    fisher = fisher.astype(np.float64)
    values, vectors = np.linalg.eigh((fisher + fisher.T) / 2)
    ridge = RIDGE * max(values.mean(), np.finfo(np.float32).tiny)
    root = np.sqrt(np.maximum(values, 0) + ridge)
    whiten, restore = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    mean = states.mean(0, dtype=np.float64)
    scatter = np.zeros((d, d))
    for start in range(0, n, FIT_ROWS):  # in float64, the whole sample would take gigabytes
        white = (states[start : start + FIT_ROWS] - mean) @ whiten
        scatter += white.T @ white
    axes = np.linalg.eigh(scatter / n)[1][:, ::-1]
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


def cell_bytes(dimensions: int, codec: str) -> int:
    """Return the bytes of a stored state before compression."""
    return 2 * dimensions if codec == STATES_1 else dimensions


def far_column(layer: str) -> str:
    """Return the name of the column of a layer's far codes."""
    return f"{layer}{FAR_SUFFIX}"


def encode_states(
    rows: Sequence[NDArray[np.floating]],
    dimensions: int,
    basis: StateBasis | None = None,
    layer: str = FINAL,
) -> dict[str, pa.Array]:
    """Encode the states of rows as the two columns of a layer, one Arrow list per row.

    Args:
        rows: [n, d] of each row.
        dimensions: d.
        basis: of `states/2`; None for `states/1`.
        layer: the layer's name.

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
    width = cell_bytes(dimensions, STATES_1 if basis is None else STATES_2)
    stored = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(joined), [None, pa.py_buffer(np.ascontiguousarray(cells))]
    )
    return {
        layer: pa.ListArray.from_arrays(_offsets(lengths), stored),
        far_column(layer): pa.ListArray.from_arrays(_offsets(far_lengths), as_arrow(far)),
    }


def decode_codes(table: pa.Table, layer: str = FINAL) -> NDArray[np.int32] | NDArray[np.int8]:
    """Return a layer's codes [n, d] of `states/2` rows, concatenated; int8 where they fit.

    Raises:
        ValueError: there are not as many far codes as escapes, or one belongs into a cell.
    """
    codes = _cells(table, layer).view(np.int8)
    far = as_numpy(one_array(table[far_column(layer)]).flatten())
    places = np.flatnonzero(codes == ESCAPE)
    if len(places) != len(far) or (np.abs(far.astype(np.int64)) <= 127).any():
        raise ValueError(f"{len(far)} far codes do not fit {len(places)} escapes")
    if not len(far):
        return codes
    wide = codes.astype(np.int32)
    wide.reshape(-1)[places] = far
    return wide


def decode_half(table: pa.Table, layer: str = FINAL) -> NDArray[np.float16]:
    """Return a layer's states [n, d] of `states/1` rows, concatenated.

    Raises:
        ValueError: the column does not hold such cells.
    """
    cells = _cells(table, layer)
    if cells.shape[1] % 2:
        raise ValueError(f"cells of {cells.shape[1]} bytes hold no float16")
    planes = cells.reshape(len(cells), 2, cells.shape[1] // 2).transpose(0, 2, 1)
    half: NDArray[np.float16] = np.ascontiguousarray(planes).view("<f2")[:, :, 0]
    return half


def decode_states(
    table: pa.Table, basis: StateBasis | None = None, layer: str = FINAL
) -> NDArray[np.float32]:
    """Return the states of rows, concatenated, float32 [n, d]; the inverse of `encode_states`.

    Raises:
        ValueError: the columns contradict each other or the basis.
    """
    if basis is None:
        return decode_half(table, layer).astype(np.float32)
    codes = decode_codes(table, layer)
    if codes.shape[1] != len(basis.mean):
        raise ValueError(f"{codes.shape[1]} codes per state, the basis has {len(basis.mean)}")
    return basis.states(codes)


def stored_layers(table: pa.Table) -> list[str]:
    """Return the layers whose states a table has, in the order of its columns."""
    return [name for name in table.column_names if LAYER.fullmatch(name)]


def decode_stored(table: pa.Table, layers: Sequence[str]) -> NDArray[Any]:
    """Return what a table stores of several layers' states, [n, layers, d], concatenated.

    Args:
        table: rows with the fields of `state_fields`.
        layers: at least one.

    Returns:
        float16 for `states/1`; codes for `states/2`: int8, or int32 where one does not fit.

    Raises:
        ValueError: the columns contradict each other, or a field does not state a known codec.
    """
    stored = []
    for layer in layers:
        codec = (table.schema.field(layer).metadata or {}).get(CODEC, b"").decode()
        if codec not in STATE_CODECS:
            raise ValueError(f"column {layer} has the codec {codec!r}")
        decoded = decode_half if codec == STATES_1 else decode_codes
        stored.append(decoded(table, layer))
    if len({values.shape for values in stored}) != 1:
        raise ValueError("layers differ in the number or width of their states")
    return stored[0][:, None] if len(stored) == 1 else np.stack(stored, axis=1)


def label_offsets(table: pa.Table, layer: str = FINAL) -> NDArray[np.int64]:
    """Return the offsets [rows + 1] of each row's states in what `decode_states` returns."""
    return list_offsets(one_array(table[layer]))


def state_fields(dimensions: int, codec: str, layer: str = FINAL) -> list[pa.Field]:
    """Return the fields of `encode_states`; the first one states the codec."""
    cell = pa.binary(cell_bytes(dimensions, codec))
    return [
        pa.field(layer, pa.list_(cell), nullable=False, metadata={CODEC: codec.encode()}),
        pa.field(far_column(layer), pa.list_(pa.int32()), nullable=False),
    ]


def states_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a Parquet writer that splits the bytes of states into planes."""
    options = parquet_options(schema, dictionary=[])
    layers = [name for name in schema.names if LAYER.fullmatch(name)]
    split = [f"{name}{LIST_ITEM}" for layer in layers for name in (layer, far_column(layer))]
    options["use_byte_stream_split"] = split
    options["compression_level"] |= {f"{layer}{LIST_ITEM}": ZSTD_LEVEL for layer in layers}
    return pq.ParquetWriter(path, schema, **options)


def _rounded(steps: NDArray[Real]) -> NDArray[Real]:
    """Return whole numbers of steps, of the same dtype."""
    whole: NDArray[Real] = np.rint(steps)
    whole[np.abs(steps) < ZERO] = 0
    return whole


def _cells(table: pa.Table, layer: str) -> NDArray[np.uint8]:
    """Return the bytes of all states of a layer, [n, width]."""
    column = one_array(table[layer])
    if column.null_count:
        raise ValueError(f"column {layer} has nulls")
    cells = column.flatten()
    if not pa.types.is_fixed_size_binary(cells.type) or cells.null_count:
        raise ValueError(f"column {layer} does not hold cells of one size")
    width = cells.type.byte_width
    data = np.frombuffer(cells.buffers()[1] or b"", np.uint8)
    return data[cells.offset * width : (cells.offset + len(cells)) * width].reshape(-1, width)


def _offsets(lengths: Sequence[int] | NDArray[np.int64]) -> pa.Array:
    return as_arrow(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))
