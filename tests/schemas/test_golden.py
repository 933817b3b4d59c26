"""Frozen label sets, one per format and codec version, that every later version must open.

They were written once, and are never written again; a new codec adds a folder. Those with hidden
states come from `tests.schemas.state_sets`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas import LabelSetError, decode, open_label_set, validate_label_set
from schemas.arrow import COLUMN_ORDER
from schemas.hidden_part import state_columns
from schemas.manifest import FileDigest, read_manifest
from schemas.state_codec import decode_states
from schemas.version import KNOWN_CODECS, STATE_CODECS

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = sorted(path for path in GOLDEN.iterdir() if (path / "manifest.json").is_file())


def test_there_is_a_set_for_each_codec() -> None:
    assert {read_manifest(path).codec for path in SETS} == set(KNOWN_CODECS)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.name)
def test_a_frozen_set_opens_with_its_original_content(path: Path) -> None:
    labels = open_label_set(path)
    assert list(validate_label_set(labels)) == []
    expected = json.loads((path / "expected.json").read_text())
    tables = [labels.read_row_group(group) for group in labels.row_groups]
    assert [name for t in tables for name in t["id"].to_pylist()] == expected["ids"]
    first = decode(tables[0]).labels
    assert first.topk_ids[0].tolist() == expected["first_label"]["topk_ids"]
    np.testing.assert_allclose(
        first.topk_logprobs[0], expected["first_label"]["topk_logprobs"], atol=0
    )
    assert first.tail_logprob[0] == pytest.approx(expected["first_label"]["tail_logprob"], abs=0)
    frame = pl.scan_parquet(path / "shards" / "*.parquet").collect()
    assert frame["id"].to_list() == expected["ids"]


@pytest.mark.parametrize("codec", STATE_CODECS)
def test_frozen_states_are_read_and_rebuilt(codec: str) -> None:
    """Stored values are equal; rebuilt ones differ by the rounding of a product of matrices."""
    path = GOLDEN / f"format-1-{codec.replace('/', '-')}"
    labels = open_label_set(path)
    assert labels.states is not None
    assert (labels.manifest.format_version, labels.states.codec) == ("1.2", codec)
    expected = json.loads((path / "expected.json").read_text())
    columns = [*COLUMN_ORDER, *state_columns(labels.states.layers)]
    table = labels.read_row_group(labels.row_groups[0], columns)
    found = decode(table).labels.states
    assert found is not None
    for number, layer in enumerate(labels.states.layers):
        assert found[0, number].tolist() == expected["first_states"][layer]
        rebuilt = decode_states(table, labels.basis(layer), layer)[0]
        np.testing.assert_allclose(rebuilt, expected["first_rebuilt"][layer], atol=1e-5)
    assert labels.head.weight[7].tolist() == expected["head"]


def test_frozen_samples_have_their_positions_and_weights() -> None:
    path = GOLDEN / "format-1-sampled"
    labels = open_label_set(path)
    assert labels.manifest.format_version == "1.2"
    assert labels.manifest.identity.keep_positions == "sample 0.4"
    expected = json.loads((path / "expected.json").read_text())
    table = labels.read_row_group(labels.row_groups[0])
    assert table["spans"].to_pylist()[0] == expected["spans"]
    assert table["label_weights"].to_pylist()[0] == expected["label_weights"]
    weights = decode(table).labels.label_weights
    assert weights is not None
    assert weights[: len(expected["spans"])].tolist() == expected["label_weights"]


def test_an_unknown_version_is_refused_with_the_version_to_install(tmp_path: Path) -> None:
    path = SETS[0]
    content = json.loads((path / "manifest.json").read_text())
    newer = tmp_path / "newer"
    newer.mkdir()
    text = json.dumps(content | {"format_version": "2.3", "something_new": 1})
    (newer / "manifest.json").write_text(text)
    with pytest.raises(LabelSetError, match=r"format version 2\.3.*\n.*reads format 2"):
        read_manifest(newer)
    text = json.dumps(content | {"format_version": "1.9", "something_new": 1})
    (newer / "manifest.json").write_text(text)
    with pytest.raises(LabelSetError, match=r"version 1\.9, .*up to 1\.2\n.*a newer softshards"):
        read_manifest(newer)
    text = json.dumps(content | {"codec": "tiny/9", "something_new": 1})
    (newer / "manifest.json").write_text(text)
    with pytest.raises(LabelSetError, match="unknown codec 'tiny/9'"):
        read_manifest(newer)


@pytest.mark.parametrize("path", ["../elsewhere.json", "/etc/hostname", "index/../../x"])
def test_a_manifest_cannot_name_files_outside_its_folder(path: str) -> None:
    """Sets are downloaded, and the files that manifests name are copied and opened."""
    with pytest.raises(ValueError, match="not inside the set's folder"):
        FileDigest(path=path, sha256="0" * 64)
