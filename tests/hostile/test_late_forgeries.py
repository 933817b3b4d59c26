"""Forgeries of what format 1.2 added: tails at temperatures, weights, asked ids, hidden rows.

Every hash is right. `verify` names the forgery; the trainer refuses what would train wrongly.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import SoftshardsError, open_label_set
from schemas.fingerprint import sha256_file
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.tempered_tails import TEMPERED_TAILS
from schemas.version import STATES_1
from tests.hostile.late_sets import TEMPERATURES, write_late_set
from tests.hostile.sealed import findings, read_json, reidentify, rewrite_rows, write_json
from tests.hostile.test_forgeries import Change, column
from tests.schemas.state_sets import write_state_set
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_late_set(tmp_path_factory.mktemp("late") / "labels")


@pytest.fixture
def labels(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "labels"))


def trained_on(path: Path) -> str | None:
    """Read a set as a run at temperature 2 does; return why it is refused."""
    try:
        opened = open_label_set(path)
        for pack in LabelDataset(opened, pack_tokens=4096, temperature=TEMPERATURES[0]):
            collate(pack)
    except SoftshardsError as error:
        return str(error)
    return None


def test_the_set_is_good(labels: Path) -> None:
    assert findings(labels) == []
    assert trained_on(labels) is None


def first_tail(value: float) -> Change:
    return column(TEMPERED_TAILS, lambda rows: [[value, rows[0][1]], *rows[1:]] if rows else rows)


def first_weight(value: float) -> Change:
    return column(LABEL_WEIGHTS, lambda row: [value, *row[1:]] if row else row)


def asked_again(position: list[int]) -> list[int]:
    return [*position[:-1], position[0]]


WRONG_TO_TRAIN_ON: dict[str, tuple[Change, str]] = {
    "a tail that has all": (first_tail(-1e-4), "tail at T = 2 does not fit the top-k"),
    "a tail that has nothing": (first_tail(-40.0), "tail at T = 2 does not fit the top-k"),
    "no tail": (first_tail(-np.inf), "tail at T = 2 does not fit the top-k"),
    "a tail above 1": (first_tail(0.5), "above"),
    "a tail of NaN": (first_tail(np.nan), "above"),
    "one tail": (column(TEMPERED_TAILS, lambda rows: [row[1:] for row in rows]), "tail"),
    "tails exchanged": (
        column(TEMPERED_TAILS, lambda rows: [row[::-1] for row in rows]),
        "tail at T = 2 does not fit the top-k",
    ),
    "a weight of 60000": (first_weight(60000.0), "weight"),
    "a weight of NaN": (first_weight(np.nan), "weight"),
    "a weight below 0": (first_weight(-1.0), "weight"),
    "a weight less": (column(LABEL_WEIGHTS, lambda row: row[:-1]), LABEL_WEIGHTS),
    "an asked id of the top k": (
        column("topk_ids", lambda rows: [asked_again(row) for row in rows]),
        "twice",
    ),
}


@pytest.mark.parametrize("name", WRONG_TO_TRAIN_ON)
def test_verify_and_the_trainer_refuse_it(name: str, labels: Path) -> None:
    change, named = WRONG_TO_TRAIN_ON[name]
    rewrite_rows(labels, change)
    found = findings(labels)
    assert any(named in text for text in found), found
    refused = trained_on(labels)
    assert refused is not None
    assert named in refused


IDENTITIES: tuple[dict[str, Any], ...] = (
    *({"label_temperatures": [value]} for value in (0.0, -1.0, 1e9, float("nan"), "x", None)),
    *({"label_temperatures": each} for each in ([2.0, 2.0], [1.0, 2.0], [2.0] * 99, "2", 2.0)),
    *({"ids_from": text} for text in ("ids:0", "ids:99999", ":", "ids", "x" * 300 + ":1", 4)),
    *({"keep_positions": text} for text in ("sample 0", "sample 9", "entropy>1e99", "all", "", 1)),
)


@pytest.mark.parametrize("identity", IDENTITIES, ids=str)
def test_identities_that_no_labeler_writes_are_refused(
    identity: dict[str, Any], labels: Path
) -> None:
    content = read_json(labels / "manifest.json")
    write_json(labels / "manifest.json", content | {"identity": content["identity"] | identity})
    assert any("the manifest cannot be read" in text for text in findings(labels))
    assert trained_on(labels) is not None


@pytest.mark.parametrize(
    "identity",
    [
        {"label_temperatures": [2.0]},
        {"label_temperatures": [0.5, 2.0]},
        {"label_temperatures": None},
        {"ids_from": None},
        {"keep_positions": None},
        {"keep_positions": "entropy>99"},
    ],
    ids=str,
)
def test_rows_that_contradict_the_identity_are_found(
    identity: dict[str, Any], labels: Path
) -> None:
    reidentify(labels, **identity)
    assert findings(labels)


def again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, *rows]


def of_the_shard(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"shard": row["shard"].replace("hidden/", "shards/")} for row in rows]


def of_one_unit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"shard": rows[0]["shard"], "unit": 0} for row in rows]


def first_range_twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = {name: rows[0][name] for name in ("start", "stop", "sha256")}
    return [rows[0], rows[1] | place, *rows[2:]]


def other_counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0] | {"labels": rows[0]["labels"] + 1}, *rows[1:]]


def read_states(path: Path) -> None:
    labels = open_label_set(path)
    for group in labels.row_groups:
        labels.read_row_group(group, ["id", "final"])


@pytest.mark.parametrize(
    "change", [again, of_the_shard, of_one_unit, first_range_twice, other_counts]
)
def test_an_index_that_names_wrong_hidden_rows_is_refused(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], tmp_path: Path
) -> None:
    path = write_state_set(tmp_path / "states", STATES_1)
    page = path / "index" / "hidden-000000.parquet"
    table = pq.read_table(page)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), page)
    content = read_json(path / "manifest.json")
    content["hidden_pages"][0]["sha256"] = sha256_file(page)
    write_json(path / "manifest.json", content)
    assert findings(path)
    with pytest.raises(SoftshardsError):
        read_states(path)
