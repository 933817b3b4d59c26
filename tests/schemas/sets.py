"""Complete label sets of random labels in either codec, made without the labeler."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas import LabelSet
from schemas.arrow import row_schema
from schemas.compact import frequency_order
from schemas.file_names import shard_name
from schemas.index import read_index, write_index
from schemas.journal import UnitEntry, journal_unit
from schemas.ledger import LedgerSums, write_ledger
from schemas.manifest import read_manifest, write_manifest
from schemas.row_group import Kept
from schemas.shard import write_shard
from schemas.version import COMPACT_1, FORMAT_VERSION, PLAIN_1
from schemas.view import View
from tests.schemas.samples import shard_table

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1-plain-1"
CODECS = (PLAIN_1, COMPACT_1)
ENGINE = {"engine": "test", "engine_version": "1", "device": "cpu", "engine_seconds": 1.0}


def write_set(path: Path, shards: Sequence[Sequence[pa.Table]], codec: str) -> Path:
    """Write a finished label set over 300 ids, with the golden set's tokenizer.

    Args:
        path: the set's folder.
        shards: per shard, the tables of its row groups.
        codec: the codec.
    """
    manifest = read_manifest(GOLDEN)
    (path / "shards").mkdir(parents=True)
    (path / "journal").mkdir()
    shutil.copytree(GOLDEN / "tokenizer", path / "tokenizer")
    entries = []
    for unit, tables in enumerate(shards):
        ids = pa.concat_tables(tables)["topk_ids"].combine_chunks().flatten().flatten().to_numpy()
        groups, footer = write_shard(
            path / shard_name(unit),
            tables,
            identity=manifest.identity,
            unit=unit,
            tail_source="exact",
            entropy_source="full",
            order=None if codec == PLAIN_1 else frequency_order(np.bincount(ids)),
        )
        entries.append(journal_unit(path, unit, groups, footer, rejects=[], provenance=ENGINE))
    write_costs(path, entries)
    pages = write_index(path, entries)
    write_manifest(
        path,
        manifest.model_copy(
            update={
                "format_version": FORMAT_VERSION,
                "codec": codec,
                "planned_units": len(shards),
                "index_pages": pages,
                "content_digest": read_index(path, pages).digest,
                "totals": None,
                "plan": None,
            }
        ),
    )
    return path


def write_costs(path: Path, entries: Sequence[UnitEntry]) -> None:
    """Write the ledger of a set's journal."""
    costs = LedgerSums()
    for entry in entries:
        costs.add(entry)
    write_ledger(path, costs.ledger())


def varied_table(first: int, rows: int, *, longest: int = 25, vocab: int = 300) -> pa.Table:
    """Return rows `row/{first}`, ... of lengths from 1 up, with scalars to filter on, some null."""
    rng = np.random.default_rng(first)
    lengths = [1, *rng.integers(2, longest, rows - 1).tolist()]
    table = shard_table(lengths, k=6, vocab=vocab)
    nll = [None if i % 4 == 0 else float(x) for i, x in enumerate(rng.random(rows))]
    values = {
        "id": [f"row/{first + i}" for i in range(rows)],
        "source": [("a.jsonl", "b.jsonl", None)[i % 3] for i in range(rows)],
        "mean_nll": nll,
        "coverage": rng.random(rows).tolist(),
    }
    for name, column in values.items():
        place = table.column_names.index(name)
        field = row_schema(vocab).field(name)
        table = table.set_column(place, field, pa.array(column, field.type))
    return table


def varied_set(path: Path, codec: str) -> Path:
    """Write a set of three shards, each of two row groups of four rows."""
    shards = [[varied_table(8 * s, 4), varied_table(8 * s + 4, 4)] for s in range(3)]
    return write_set(path, shards, codec)


def view_of(labels: LabelSet, keep: Callable[[int, int], NDArray[np.bool_]]) -> View:
    """Return a view of the rows in the masks that `keep` returns.

    Args:
        labels: the set.
        keep: from a row group's number and its number of rows to a mask, bool [rows].
    """
    kept = []
    for number, group in enumerate(labels.row_groups):
        sizes = labels.read_row_group(group, ["n_labels", "n_tokens"])
        n_labels, n_tokens = (column.to_numpy() for column in sizes.columns)
        mask = keep(number, group.rows)
        if mask.any():
            kept.append(Kept.of(group, mask, n_labels=n_labels, n_tokens=n_tokens))
    return View(
        label_set=str(labels.path.absolute()),
        identity_digest=labels.manifest.identity_digest,
        kept=tuple(kept),
        made={"by": "a test"},
    )
