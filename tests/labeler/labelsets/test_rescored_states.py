"""`verify --rescore` on hidden states: those of other labels and of other layers are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from labeler.labeling.writing.finalize import finalize
from labeler.labelsets.verify.rescore import rescore_rows
from schemas import open_label_set, validate_label_set
from schemas.file_names import hidden_name
from schemas.hidden_part import hidden_schema, write_hidden
from schemas.journal import read_entry, write_entry
from schemas.manifest import read_manifest
from tests.tiny_model import TEXT

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module", params=[0, 1e-3], ids=["states/1", "states/2"])
def path(
    request: pytest.FixtureRequest, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Label documents with states of the head's input and of both layers."""
    folder, rng = tmp_path_factory.mktemp("states"), np.random.default_rng(0)
    words = " ".join(TEXT).split()
    rows = [{"id": str(i), "text": " ".join(rng.choice(words, 24))} for i in range(16)]
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LabelConfig(
        model=teacher,
        out=folder / "labels",
        engine="transformers",
        k=8,
        max_length=64,
        states="final,0,1",
        state_kl=request.param,
    )
    label([str(source)], config)
    return folder / "labels"


def rescored(path: Path, teacher: Path) -> tuple[dict[str, float], list[str]]:
    result = rescore_rows(open_label_set(path), 6, teacher, tolerance=1e-3, seed=0)
    return result.state_errors, [f"{f.kind}: {f.what}" for f in result.findings]


def forged(path: Path, out: Path, change: Change) -> Path:
    """Copy a set with other hidden states, and hashes that fit."""
    shutil.copytree(path, out)
    labels = open_label_set(out)
    manifest = labels.manifest
    assert manifest.states is not None
    names = hidden_schema(manifest.states).names
    for unit in range(manifest.planned_units):
        entry = read_entry(out, unit)
        assert entry is not None
        groups = [group for group in labels.row_groups if group.shard == entry.shard]
        hidden = write_hidden(
            out / hidden_name(unit),
            [change(labels.read_row_group(group, names)) for group in groups],
            states=manifest.states,
            identity_digest=manifest.identity_digest,
            unit=unit,
        )
        write_entry(out, entry.model_copy(update={"hidden": hidden}))
    finalize(out, read_manifest(out))
    return out


def rolled(layer: str) -> Change:
    def change(table: pa.Table) -> pa.Table:
        at, field = table.column_names.index(layer), table.schema.field(layer)
        rows = [row[-1:] + row[:-1] for row in table[layer].to_pylist()]
        return table.set_column(at, field, pa.array(rows, field.type))

    return change


def test_right_states_are_the_teachers(path: Path, teacher: Path) -> None:
    assert list(validate_label_set(open_label_set(path))) == []
    errors, found = rescored(path, teacher)
    assert found == []
    assert set(errors) == {"final", "layer_0", "layer_1"}
    assert max(errors.values()) < 0.02


@pytest.mark.parametrize("layer", ["final", "layer_0"])
def test_shifted_states_are_named(path: Path, teacher: Path, tmp_path: Path, layer: str) -> None:
    other = forged(path, tmp_path / "other", rolled(layer))
    named = any("shifted by +1" in f.what for f in validate_label_set(open_label_set(other)))
    assert named == (layer == "final")  # the head says nothing about other layers
    what = f"the states of {layer} are the teacher's at the label -1: they are shifted by +1"
    assert rescored(other, teacher)[1] == [f"shift: {what}"]


def test_exchanged_layers_are_named(path: Path, teacher: Path, tmp_path: Path) -> None:
    """Codes of another basis are no states of any layer."""

    def exchange(table: pa.Table) -> pa.Table:
        for suffix in ("", "_far"):
            names = [f"layer_{n}{suffix}" for n in (0, 1)]
            columns = [table[name] for name in names]
            for name, column in zip(names, columns[::-1], strict=True):
                at = table.column_names.index(name)
                table = table.set_column(at, table.schema.field(name), column)
        return table

    other = forged(path, tmp_path / "other", exchange)
    found = rescored(other, teacher)[1]
    has_basis = open_label_set(path).basis("layer_0") is not None
    for this, that, text in zip(("layer_0", "layer_1"), ("layer_1", "layer_0"), found, strict=True):
        what = "are not the teacher's" if has_basis else f"are the teacher's of {that}"
        assert text.startswith(f"states: the states of {this} {what}")
