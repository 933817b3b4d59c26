"""`labeler verify` must see what is wrong, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from labeler.checks.verification import rescore_rows
from labeler.config import LabelConfig
from labeler.runs.run import label
from schemas import LabelSet, SoftshardsError, decode, encode, open_label_set, validate_label_set
from schemas.arrow import shard_writer
from schemas.index import write_index
from schemas.journal import read_entries, write_entry
from schemas.manifest import write_manifest
from schemas.shard import byte_ranges
from tests.tiny_model import make_model, make_tokenizer


@pytest.fixture
def labels(corpus: Path, settings: Callable[..., LabelConfig]) -> LabelSet:
    config = settings()
    label([str(corpus)], config)
    return open_label_set(config.out)


def shift_labels(labels: LabelSet, by: int) -> LabelSet:
    """Move every label by `by` positions within its row, and seal the set anew, hashes and all."""
    out, vocab = labels.path, labels.manifest.identity.vocab_size
    entries = read_entries(out, labels.manifest.planned_units)
    for number, entry in enumerate(entries):
        path = out / entry.shard
        table = pq.read_table(path)
        decoded = decode(table)
        rows = [
            decoded.labels[np.roll(np.arange(a, b), by)]
            for a, b in zip(decoded.offsets[:-1], decoded.offsets[1:], strict=True)
        ]
        for name, array in encode(rows, vocab).items():
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(name), array)
        with shard_writer(path, table.schema) as writer:
            writer.write_table(table)
        groups, footer = byte_ranges(path)
        entries[number] = entry.model_copy(update={"row_groups": groups, "footer": footer})
        write_entry(out, entries[number])
    pages = write_index(out, entries)
    write_manifest(out, labels.manifest.model_copy(update={"index_pages": pages}))
    return open_label_set(out)


def test_good_labels_are_confirmed(labels: LabelSet) -> None:
    result = rescore_rows(labels, 6, None, tolerance=1e-3, seed=0)
    assert result.good, result.verdict
    assert result.rows == 6
    assert result.positions > 100
    assert result.beyond_rounding < 1e-5
    assert result.argmax_agreement[0] == 1.0


@pytest.mark.parametrize("by", [-1, 1])
def test_shifted_labels_are_named_as_shifted(labels: LabelSet, by: int) -> None:
    shifted = shift_labels(labels, by)
    result = rescore_rows(shifted, 6, None, tolerance=1e-3, seed=0)
    assert not result.good
    assert "shifted by" in result.verdict
    assert result.argmax_agreement[-by] > 0.9
    assert list(validate_label_set(shifted)) != []


def test_another_teacher_is_refused(labels: LabelSet, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_model(other, vocab_size=make_tokenizer(other) + 20, seed=5)
    with pytest.raises(SoftshardsError, match="its weights have digest"):
        rescore_rows(labels, 1, other, tolerance=1e-3, seed=0)


def test_a_missing_teacher_is_named(labels: LabelSet, tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="not a model"):
        rescore_rows(labels, 1, tmp_path / "gone", tolerance=1e-3, seed=0)
