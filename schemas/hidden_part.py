"""`hidden/part-000000.parquet`: the hidden states of one unit, row by row as in its shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import FOOTER_KEY
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError
from schemas.file_names import basis_name
from schemas.fingerprint import canonical_json
from schemas.journal import HiddenPart
from schemas.json_values import parse_object
from schemas.manifest import Manifest, StatesRecord
from schemas.shard import hashed_ranges, write_row_groups
from schemas.state_codec import StateBasis, encode_states, far_column, state_fields, states_writer
from schemas.version import SHARD_VERSION

HIDDEN_KEYS = ("id", "chunk", "sample", "n_labels")
"""Columns that tie a row of states to the row of the shard."""
RESTORE = (
    "restore it from a copy of the set; `labeler convert --drop-states` writes the labels without "
    "hidden states"
)


def state_columns(layers: Iterable[str]) -> list[str]:
    """Return the names of the columns of layers' states."""
    return [name for layer in layers for name in (layer, far_column(layer))]


def hidden_schema(states: StatesRecord) -> pa.Schema:
    """Return the schema of a hidden part."""
    kinds = (pa.string(), pa.int32(), pa.int16(), pa.int32())
    keys = [pa.field(name, kind, nullable=False) for name, kind in zip(HIDDEN_KEYS, kinds)]
    layers = (state_fields(states.dimensions, states.codec, layer) for layer in states.layers)
    return pa.schema([*keys, *(field for fields in layers for field in fields)])


def hidden_table(
    rows: pa.Table,
    values: Sequence[NDArray[np.floating]],
    states: StatesRecord,
    bases: Mapping[str, StateBasis],
) -> pa.Table:
    """Encode the states of one row group.

    Args:
        rows: the same rows of the shard; their keys are taken.
        values: `Labels.states` of each row, [n, layers, d].
        states: of the set.
        bases: of each layer, for `states/2`.

    Raises:
        ValueError: shapes do not fit, or a state is not finite.
    """
    schema = hidden_schema(states)
    shape = len(states.layers), states.dimensions
    counts = rows["n_labels"].to_pylist()
    if [row.shape for row in values] != [(n, *shape) for n in counts]:
        raise ValueError(f"hidden states are not [labels, {shape[0]}, {shape[1]}] in each row")
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: rows[name] for name in HIDDEN_KEYS}
    for number, layer in enumerate(states.layers):
        of_layer = [row[:, number] for row in values]
        columns |= encode_states(of_layer, states.dimensions, bases.get(layer), layer)
    return pa.Table.from_arrays(
        [columns[field.name].cast(field.type) for field in schema], schema=schema
    )


def hidden_metadata(states: StatesRecord, identity_digest: str, unit: int) -> dict[bytes, bytes]:
    """Return the key-value metadata of a hidden part: like a shard's, nothing that varies."""
    content = {
        "format_version": SHARD_VERSION,
        "codec": states.codec,
        "dimensions": states.dimensions,
        "layers": list(states.layers),
        "bases": _basis_digests(states),
        "identity_digest": identity_digest,
        "unit": unit,
    }
    return {FOOTER_KEY: canonical_json(content)}


def write_hidden(
    path: Path,
    tables: Iterable[pa.Table],
    *,
    states: StatesRecord,
    identity_digest: str,
    unit: int,
) -> HiddenPart:
    """Write the hidden states of a unit atomically, one row group per table.

    Args:
        path: path of the file.
        tables: of `hidden_table`, one per row group of the shard.
        states: of the set.
        identity_digest: of the set's identity.
        unit: the unit's number in the set.

    Returns:
        The byte ranges, for the journal.
    """
    metadata = hidden_metadata(states, identity_digest, unit)
    schema = hidden_schema(states).with_metadata(metadata)
    with atomic_path(path) as tmp:
        write_row_groups(states_writer(tmp, schema), tables, metadata)
        return hidden_ranges(tmp)


def hidden_ranges(path: Path) -> HiddenPart:
    """Hash a finished hidden part; return its byte ranges, which tile the file."""
    groups, footer, table = hashed_ranges(path, ["n_labels"])
    row, counted = 0, []
    for group in groups:
        labels = sum(table["n_labels"].slice(row, group.rows).to_pylist())
        counted.append(group.model_copy(update={"labels": labels}))
        row += group.rows
    return HiddenPart(row_groups=tuple(counted), footer=footer)


def check_hidden_footer(metadata: pq.FileMetaData, manifest: Manifest, path: Path | str) -> None:
    """Refuse a hidden part whose footer names a different set, layers, codec, or basis.

    Raises:
        LabelSetError: the footer is not a hidden part's, or not of this set.
        ValueError: its columns are not those of a hidden part.
    """
    states = manifest.states
    assert states is not None, "the caller reads states"
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    if raw is None:
        raise LabelSetError("these are not hidden states of a label set", path=path)
    found = parse_object(raw)
    for name, expected in (
        ("format_version", SHARD_VERSION),
        ("codec", states.codec),
        ("dimensions", states.dimensions),
        ("layers", list(states.layers)),
        ("bases", _basis_digests(states)),
        ("identity_digest", manifest.identity_digest),
    ):
        if found.get(name) != expected:
            raise LabelSetError(
                f"the hidden states belong to a different label set: {name} is "
                f"{found.get(name)!r}, expected {expected!r}",
                path=path,
                hint="put the file back where it came from and run `labeler label` again",
            )
    if not metadata.schema.to_arrow_schema().remove_metadata().equals(hidden_schema(states)):
        raise ValueError("the schema is not that of hidden states")


def _basis_digests(states: StatesRecord) -> dict[str, str]:
    files = ((layer, states.file(basis_name(layer))) for layer in states.layers)
    return {layer: file.sha256 for layer, file in files if file is not None}
