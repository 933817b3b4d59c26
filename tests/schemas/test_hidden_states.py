"""Hidden states of a label set: read beside the labels, verified, and checked against them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from schemas import LabelSetError, decode, open_label_set, validate_label_set
from schemas.arrow import COLUMN_ORDER
from schemas.hidden_part import state_columns
from schemas.version import COMPACT_1, PLAIN_1, STATES_1, STATES_2
from tests.schemas.state_sets import LAYERS, VOCAB, WIDTH, states_of, write_state_set

STATE_CODECS = (STATES_1, STATES_2)
COLUMNS = [*COLUMN_ORDER, *state_columns(LAYERS)]


@pytest.mark.parametrize("codec", [PLAIN_1, COMPACT_1])
@pytest.mark.parametrize("states", STATE_CODECS)
def test_states_come_with_the_labels_of_their_rows(tmp_path: Path, states: str, codec: str) -> None:
    labels = open_label_set(write_state_set(tmp_path / "set", states, codec=codec))
    assert labels.states is not None
    assert labels.states.layers == LAYERS
    row = 0
    for group in labels.row_groups:
        table = labels.read_row_group(group, COLUMNS)
        assert table.column_names == COLUMNS
        assert decode(labels.read_row_group(group)).labels.states is None
        decoded = decode(table)
        found = decoded.labels.states
        assert found is not None
        assert found.dtype in ([np.float16] if states == STATES_1 else [np.int8, np.int32])
        for number in range(group.rows):
            part = found[decoded.offsets[number] : decoded.offsets[number + 1]]
            exact = states_of(row, len(part))
            if states == STATES_1:
                assert np.array_equal(part, exact.astype(np.float16))
            for at, layer in enumerate(LAYERS if states == STATES_2 else ()):
                basis = labels.basis(layer)
                assert basis is not None
                assert np.array_equal(part[:, at], basis.codes(exact[:, at]))
            row += 1
    assert row == labels.rows == 12


def test_the_head_rebuilds_the_labels(tmp_path: Path) -> None:
    labels = open_label_set(write_state_set(tmp_path / "set", STATES_2))
    basis = labels.basis("final")
    assert basis is not None
    assert labels.head.facts.valid_vocab == VOCAB
    table = labels.read_row_group(labels.row_groups[1], [*COLUMN_ORDER, "final", "final_far"])
    found = decode(table).labels
    assert found.states is not None
    assert found.states.shape == (len(found), 1, WIDTH)
    logits = labels.head.logits(basis.states(found.states[:, 0]))
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    at_ids = np.take_along_axis(logp, found.topk_ids.astype(np.int64), 1)
    np.testing.assert_allclose(at_ids, found.topk_logprobs, atol=0.1)


def test_layers_are_read_alone_and_in_any_order(tmp_path: Path) -> None:
    labels = open_label_set(write_state_set(tmp_path / "set", STATES_1))
    group = labels.row_groups[0]
    table = labels.read_row_group(group, ["layer_3_far", "n_tokens", "layer_3", "final"])
    assert table.column_names == ["layer_3_far", "n_tokens", "layer_3", "final"]
    reader = pickle.loads(pickle.dumps(labels.reader))
    mask = np.array([False, True, False])
    with reader.open(group, "read") as opened:
        one = opened.read(["final", "id"], mask)
    assert one["id"].to_pylist() == ["row/1"]
    assert one["final"].equals(table["final"].filter(pa.array(mask)))


def test_states_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write_state_set(tmp_path / "set", STATES_1)
    labels = open_label_set(path)
    group = labels.row_groups[0]
    with pytest.raises(LabelSetError, match=r"'layer_4': it stores final, layer_3"):
        labels.read_row_group(group, ["layer_4"])
    part = path / "hidden" / "part-000000.parquet"
    data = part.read_bytes()
    part.unlink()
    assert labels.read_row_group(group)["id"][0].as_py() == "row/0"
    with pytest.raises(LabelSetError, match="the hidden states are missing"):
        open_label_set(path).read_row_group(group, ["final"])
    part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(LabelSetError, match=r"hidden/part-000000.*was altered"):
        open_label_set(path).read_row_group(group, ["final"])


@pytest.mark.parametrize("name", ["head/head.safetensors", "index/hidden-000000.parquet"])
def test_files_of_states_are_checked_before_use(tmp_path: Path, name: str) -> None:
    path = write_state_set(tmp_path / "set", STATES_1)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    labels = open_label_set(path)
    with pytest.raises(LabelSetError, match="altered"):
        _ = labels.head if name.startswith("head") else labels.hidden.groups


def findings(path: Path) -> list[str]:
    return [f"{f.kind}: {f}" for f in validate_label_set(open_label_set(path))]


@pytest.mark.parametrize("codec", [PLAIN_1, COMPACT_1])
@pytest.mark.parametrize("states", STATE_CODECS)
def test_a_right_set_has_no_findings(tmp_path: Path, states: str, codec: str) -> None:
    assert findings(write_state_set(tmp_path / "set", states, codec=codec)) == []


def shifted(row: int, n: int) -> NDArray[np.float32]:
    return np.roll(states_of(row, n), 1, axis=0)


def exchanged(row: int, n: int) -> NDArray[np.float32]:
    return states_of(row, n)[:, ::-1]


def others(row: int, n: int) -> NDArray[np.float32]:
    return states_of(row + 100, n)


@pytest.mark.parametrize("codec", STATE_CODECS)
@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (shifted, r"^shift: .*states are shifted by \+1"),
        (exchanged, "^states: .*the states of final are in column layer_3"),
        (others, "^states: .*does not give the top-k .* of another layer or of other tokens"),
    ],
)
def test_wrong_states_are_named(
    tmp_path: Path, codec: str, stored: Callable[[int, int], NDArray[np.float32]], named: str
) -> None:
    found = findings(write_state_set(tmp_path / "set", codec, states=stored))
    assert len(found) == 4  # row groups
    assert all(re.search(named, text) for text in found)


def test_a_head_of_another_teacher_is_named(tmp_path: Path) -> None:
    other = np.random.default_rng(9).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    found = findings(write_state_set(tmp_path / "set", STATES_1, head=other))
    assert any("or the head is another teacher's" in text for text in found)
