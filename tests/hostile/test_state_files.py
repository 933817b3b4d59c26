"""Hidden states of strangers: altered bytes, forged files and records are refused by name."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from schemas import LabelSet, LabelSetError, decode, open_label_set, validate_label_set
from schemas.arrow import COLUMN_ORDER
from schemas.file_names import HEAD_FILE, basis_name, hidden_name
from schemas.fingerprint import sha256_json
from schemas.hidden_part import hidden_schema, state_columns, write_hidden
from schemas.journal import read_entry, write_entry
from schemas.manifest import read_manifest
from schemas.stored_head import METADATA_KEY, HeadFacts
from schemas.version import STATES_1, STATES_2
from tests.hostile.mutating import mutated
from tests.hostile.sealed import reseal_head, reseal_part
from tests.schemas.state_sets import LAYERS, VOCAB, WIDTH, close_set, head_weight, write_state_set

FILES = ("hidden/*", "head/*", "index/hidden-*")
CHANGES = 10
MUTATIONS = 12
COLUMNS = [*COLUMN_ORDER, *state_columns(LAYERS)]


def use(labels: LabelSet) -> list[pa.Table]:
    """Read all that a trainer may read of states."""
    _ = labels.head
    bases = [labels.basis(layer) for layer in LAYERS]
    tables = [labels.read_row_group(group, COLUMNS) for group in labels.row_groups]
    for table in tables:
        decode(table)
    assert len(bases) == len(LAYERS)
    return tables


def verify(path: Path) -> list[str]:
    """Return the findings of `labeler verify`; a refusal to open is one."""
    try:
        return [str(finding) for finding in validate_label_set(open_label_set(path))]
    except LabelSetError as error:
        return [str(error)]


@pytest.mark.parametrize("codec", [STATES_1, STATES_2])
@pytest.mark.parametrize("pattern", FILES)
def test_altered_bytes_are_noticed(tmp_path: Path, pattern: str, codec: str) -> None:
    rng = random.Random(pattern + codec)
    path = write_state_set(tmp_path / "set", codec)
    for change in range(CHANGES):
        file = rng.choice(sorted(path.glob(pattern)))
        original = file.read_bytes()
        place = rng.randrange(len(original))
        changed = bytearray(original[:place] if change % 4 == 0 else original)
        if change % 4:
            changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(LabelSetError):
            use(open_label_set(path))
        assert verify(path), f"{file.name}, byte {place}"
        file.write_bytes(original)
    assert verify(path) == []


FACTS = HeadFacts(valid_vocab=VOCAB)


@pytest.mark.parametrize(
    ("tensors", "metadata", "named"),
    [
        ({"weight": head_weight()[:, :-1]}, FACTS.metadata, "no weight of 24 columns"),
        ({"weight": head_weight()[:-1]}, FACTS.metadata, "299 rows"),
        ({"weight": head_weight() * np.inf}, FACTS.metadata, "not finite"),
        ({"weight": head_weight().astype(np.int8)}, FACTS.metadata, "dtype I8"),
        ({"bias": np.zeros(VOCAB, np.float32)}, FACTS.metadata, "no weight"),
        (
            {"weight": head_weight(), "bias": np.zeros(3, np.float32)},
            FACTS.metadata,
            "differ in length",
        ),
        ({"weight": head_weight(), "more": np.zeros(3)}, FACTS.metadata, "besides weight"),
        ({"weight": head_weight()}, {}, "not the teacher's head"),
        ({"weight": head_weight()}, {METADATA_KEY: '{"valid_vocab": 1e400}'}, "not the teacher's"),
        ({"weight": head_weight()}, {METADATA_KEY: '{"valid_vocab": 7}'}, "7 ids"),
        (
            {"weight": head_weight()},
            {METADATA_KEY: '{"valid_vocab": 300, "scale": -1}'},
            "not the teacher's head",
        ),
    ],
)
def test_a_forged_head_is_refused(
    tmp_path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str], named: str
) -> None:
    path = write_state_set(tmp_path / "set", STATES_1)
    save_file(tensors, path / HEAD_FILE, metadata=metadata or None)
    reseal_head(path, HEAD_FILE)
    with pytest.raises(LabelSetError, match=named):
        _ = open_label_set(path).head
    assert any(named in text for text in verify(path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t | {"step": np.zeros(1, np.float32)}, "step is not above 0"),
        (lambda t: t | {"step": np.full(1, np.nan, np.float32)}, "not finite"),
        (lambda t: t | {"mean": t["mean"] * np.inf}, "not finite"),
        (lambda t: t | {"mean": t["mean"][:-1]}, "not those of a basis of 24"),
        (lambda t: t | {"mean": t["mean"].astype(np.float64)}, "not float32"),
        (lambda t: {n: x for n, x in t.items() if n != "analysis"}, "not those of a basis"),
    ],
)
def test_a_forged_basis_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    path = write_state_set(tmp_path / "set", STATES_2)
    file = path / basis_name("final")
    save_file(change(load_file(file)), file)
    reseal_head(path, basis_name("final"))
    with pytest.raises(LabelSetError, match=named):
        open_label_set(path).basis("final")
    assert any(named in text for text in verify(path))


def test_a_basis_that_does_not_invert_is_named(tmp_path: Path) -> None:
    path = write_state_set(tmp_path / "set", STATES_2)
    file = path / basis_name("layer_3")
    tensors = load_file(file)
    save_file(tensors | {"synthesis": tensors["synthesis"] * 2}, file)
    reseal_head(path, basis_name("layer_3"))
    assert any("does not invert" in text for text in verify(path))


@pytest.mark.parametrize("content", [b"", b"\xff" * 7, b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}"])
def test_what_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_state_set(tmp_path / "set", STATES_2)
    for name in (HEAD_FILE, basis_name("final")):
        (path / name).write_bytes(content)
        reseal_head(path, name)
        labels = open_label_set(path)
        with pytest.raises(LabelSetError, match=r"not the teacher's head|not a basis"):
            _ = labels.head if name == HEAD_FILE else labels.basis("final")


def forge_part(path: Path, change: Callable[[pa.Table], pa.Table], keep: int = 2) -> None:
    """Write other hidden states of the first unit, with hashes that fit."""
    labels = open_label_set(path)
    manifest, entry = labels.manifest, read_entry(path, 0)
    assert manifest.states is not None
    assert entry is not None
    names = hidden_schema(manifest.states).names
    groups = [g for g in labels.row_groups if g.shard == entry.shard]
    tables = [change(labels.read_row_group(group, names)) for group in groups][:keep]
    hidden = write_hidden(
        path / hidden_name(0),
        tables,
        states=manifest.states,
        identity_digest=manifest.identity_digest,
        unit=0,
    )
    ranges = tuple(  # the journal refuses other counts than the shard's
        g.model_copy(update={"rows": s.rows, "labels": s.labels})
        for g, s in zip(hidden.row_groups, entry.row_groups, strict=False)
    )
    part = hidden.model_copy(update={"row_groups": ranges})
    write_entry(path, entry.model_copy(update={"hidden": part}))


def column(table: pa.Table, name: str, values: object) -> pa.Table:
    at = table.column_names.index(name)
    field = table.schema.field(name)
    return table.set_column(at, field, pa.array(values, field.type))


def far_codes(table: pa.Table) -> pa.Table:
    return column(table, "final_far", [[7]] * table.num_rows)


def fewer_states(table: pa.Table) -> pa.Table:
    return column(table, "final", [row[:-1] for row in table["final"].to_pylist()])


def other_rows(table: pa.Table) -> pa.Table:
    return column(table, "id", table["id"].to_pylist()[::-1])


def infinite(table: pa.Table) -> pa.Table:
    cell = b"\0" * WIDTH + b"\x7c" * WIDTH
    return column(table, "final", [[cell] * len(row) for row in table["final"].to_pylist()])


@pytest.mark.parametrize(
    ("codec", "change", "named"),
    [
        (STATES_2, far_codes, "far codes do not fit"),
        (STATES_1, fewer_states, "final does not have one state per label"),
        (STATES_1, other_rows, "its rows are not those of the shard: id differs"),
        (STATES_1, infinite, "a hidden state is not finite"),
    ],
)
def test_forged_states_are_named(
    tmp_path: Path, codec: str, change: Callable[[pa.Table], pa.Table], named: str
) -> None:
    path = write_state_set(tmp_path / "set", codec)
    forge_part(path, change)
    close_set(path, read_manifest(path))
    assert any(named in text for text in verify(path))


RECORD: dict[str, Any] = {"layers": ["final"], "codec": "states/1", "dimensions": 24}
HEAD_DIGEST = {"path": HEAD_FILE, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "record",
    [
        RECORD | {"files": [{"path": "head/../../x", "sha256": "0" * 64}]},
        RECORD
        | {"files": [HEAD_DIGEST, {"path": "shards/part-000000.parquet", "sha256": "0" * 64}]},
        RECORD | {"files": [HEAD_DIGEST, HEAD_DIGEST]},
        RECORD | {"files": []},
        RECORD | {"files": [HEAD_DIGEST], "layers": ["final", "layer_1/../../x"]},
        RECORD | {"files": [HEAD_DIGEST], "layers": ["final", "input_ids"]},
        RECORD | {"files": [HEAD_DIGEST], "layers": []},
        RECORD | {"files": [HEAD_DIGEST], "layers": ["final", "final"]},
        RECORD | {"files": [HEAD_DIGEST], "dimensions": 1 << 40},
        RECORD | {"files": [HEAD_DIGEST], "dimensions": 0},
        RECORD | {"files": [HEAD_DIGEST], "codec": "states/9"},
        RECORD | {"files": [HEAD_DIGEST], "kl_measured": "NaN"},
        RECORD | {"files": [HEAD_DIGEST], "command": "x"},
    ],
)
def test_a_forged_record_is_refused(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_state_set(tmp_path / "set", STATES_1, units=1)
    content = json.loads((path / "manifest.json").read_text()) | {"states": record}
    layers = ",".join(record["layers"])
    content["identity"]["states"] = f"{layers} {record['codec']}"
    content["identity_digest"] = sha256_json(content["identity"])
    content["self_digest"] = sha256_json(content | {"self_digest": ""})
    (path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(LabelSetError, match="the manifest cannot be read"):
        open_label_set(path)


@pytest.mark.parametrize("name", [HEAD_FILE, "hidden/part-000000.parquet", "hidden"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    path = write_state_set(tmp_path / "set", STATES_1)
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabelSetError, match="symbolic link"):
        use(open_label_set(path))


def test_states_that_expand_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a few kilobytes that states a hundred times as much."""
    path = write_state_set(
        tmp_path / "set", STATES_1, states=lambda _, n: np.zeros((n, 2, WIDTH), np.float32)
    )
    group = open_label_set(path).row_groups[0]
    open_label_set(path).read_row_group(group, ["final"])
    monkeypatch.setattr("schemas.size_limits.base_bytes", lambda: 0)
    monkeypatch.setattr("schemas.parquet_sizes.base_bytes", lambda: 0)
    monkeypatch.setattr("schemas.size_limits.EXPANSION", 0)
    with pytest.raises(LabelSetError, match="would take"):
        open_label_set(path).read_row_group(group, ["final"])


@pytest.mark.parametrize("codec", [STATES_1, STATES_2])
def test_mutated_files_under_right_digests_raise_our_errors_only(
    tmp_path: Path, codec: str
) -> None:
    """A forger seals what he wrote: it is read, refused or found, and nothing else happens."""
    rng = random.Random(codec)
    whole = write_state_set(tmp_path / "set", codec)
    heads = [HEAD_FILE, *([basis_name("final")] if codec == STATES_2 else [])]
    for number in range(MUTATIONS):
        path = tmp_path / f"{number}"
        shutil.copytree(whole, path)
        for name in heads:
            (path / name).write_bytes(mutated((whole / name).read_bytes(), rng))
            reseal_head(path, name)
        data = mutated((whole / hidden_name(0)).read_bytes(), rng)
        with contextlib.suppress(LabelSetError, ValueError):  # no ranges tile an empty file
            reseal_part(path, data)
        with contextlib.suppress(LabelSetError):
            _ = open_label_set(path).head
        with contextlib.suppress(LabelSetError):
            labels = open_label_set(path)
            labels.read_row_group(labels.row_groups[0], COLUMNS)
            use(labels)
        verify(path)
        shutil.rmtree(path)
