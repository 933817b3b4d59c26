"""Commands on finished sets keep hidden states with their rows, or say that they are gone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from labeler.labeling.writing.finalize import finalize
from labeler.labelsets.derive.merge import merge
from labeler.labelsets.derive.recode import recode
from labeler.labelsets.exchange.export_set import export
from labeler.labelsets.hub.complete_set import open_complete_set
from labeler.labelsets.inspect.summary import summarize
from labeler.labelsets.repair.repair import run_repair
from labeler.labelsets.repair.repair_config import RepairConfig
from schemas import LabelSetError, SoftshardsError, open_label_set, scan, validate_label_set
from schemas.file_names import BATCH
from schemas.hidden_part import hidden_schema
from schemas.journal import finished_unit, read_entry
from schemas.manifest import read_manifest
from schemas.version import COMPACT_1, PLAIN_1, STATES_1, STATES_2
from schemas.view import write_view
from tests.fork_server import fork_server
from tests.schemas.sets import view_of
from tests.schemas.state_sets import LAYERS, WIDTH, states_of, write_state_set

Cells = dict[str, list[bytes]]


def cells(path: Path | str) -> dict[str, Cells]:
    """Return the stored states of each row, by id and column."""
    labels = open_label_set(path)
    assert labels.states is not None
    names = hidden_schema(labels.states).names
    tables = [labels.read_row_group(group, names) for group in labels.row_groups]
    return {row.pop("id"): row for table in tables for row in table.to_pylist()}


def findings(path: Path) -> list[str]:
    return [str(finding) for finding in validate_label_set(open_label_set(path))]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make sets of rows 0 to 11 in either codec, and rows 100 to 111 in the same basis."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "half": write_state_set(root / "half", STATES_1),
        "codes": write_state_set(root / "codes", STATES_2),
        "more": write_state_set(root / "more", STATES_2, first=100),
    }


@pytest.mark.parametrize("name", ["half", "codes"])
def test_convert_copies_states_and_drops_them_on_request(
    sets: dict[str, Path], tmp_path: Path, name: str
) -> None:
    source = open_label_set(sets[name])
    manifest = recode([source], tmp_path / "compact", codec=COMPACT_1, how="convert")
    assert (manifest.format_version, manifest.states) == ("1.2", source.states)
    assert cells(tmp_path / "compact") == cells(sets[name])
    assert findings(tmp_path / "compact") == []
    dropped = recode([source], tmp_path / "labels", codec=PLAIN_1, how="convert", drop_states=True)
    assert (dropped.format_version, dropped.states, dropped.identity.states) == ("1.1", None, None)
    assert not (tmp_path / "labels" / "head").exists()
    assert not (tmp_path / "labels" / "hidden").exists()
    assert findings(tmp_path / "labels") == []
    digests = {source.content_digest, open_label_set(tmp_path / "labels").content_digest}
    assert len(digests) == 2


def test_a_set_that_lost_its_states_says_so_and_is_converted_without(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "set"
    shutil.copytree(sets["codes"], path)
    shutil.rmtree(path / "hidden")
    labels = open_label_set(path)
    assert [labels.read_row_group(g).num_rows for g in labels.row_groups] == [3, 3, 3, 3]
    assert all("the hidden states are missing" in text for text in findings(path))
    with pytest.raises(LabelSetError, match=r"are missing\n.*--drop-states"):
        recode([labels], tmp_path / "no", codec=PLAIN_1, how="convert")
    with pytest.raises(LabelSetError, match="hidden states of all units are gone"):
        run_repair(RepairConfig(str(path)))
    assert sorted(p.name for p in (path / "shards").iterdir()) == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    recode([labels], tmp_path / "out", codec=PLAIN_1, how="convert", drop_states=True)
    assert findings(tmp_path / "out") == []
    facts = summarize(path, labels)["states"]
    assert facts is not None
    assert (facts["layers"], facts["codec"]) == (list(LAYERS), STATES_2)


def test_sets_in_one_basis_merge(sets: dict[str, Path], tmp_path: Path) -> None:
    merge([sets["codes"], sets["more"]], tmp_path / "both", codec=None, on_duplicate="refuse")
    assert cells(tmp_path / "both") == cells(sets["codes"]) | cells(sets["more"])
    assert findings(tmp_path / "both") == []


def test_sets_in_other_bases_merge_without_states(sets: dict[str, Path], tmp_path: Path) -> None:
    other = write_state_set(tmp_path / "other", STATES_2, first=100, step=0.05)
    with pytest.raises(SoftshardsError, match=r"other bases.*\n.*--drop-states"):
        merge([sets["codes"], other], tmp_path / "no", codec=None, on_duplicate="refuse")
    with pytest.raises(SoftshardsError, match=r"states: here 'final,layer_3 states/2'.*\n.*--drop"):
        merge([sets["half"], sets["more"]], tmp_path / "no", codec=None, on_duplicate="refuse")
    for name, sources in (("a", [sets["codes"], other]), ("b", [sets["half"], sets["more"]])):
        merge(sources, tmp_path / name, codec=None, on_duplicate="refuse", drop_states=True)
        assert open_label_set(tmp_path / name).rows == 24
        assert findings(tmp_path / name) == []


def test_a_view_selects_states_with_its_rows(sets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(sets["codes"], tmp_path / "labels")
    view = view_of(
        open_label_set(tmp_path / "labels"), lambda n, rows: np.arange(rows) % 2 == n % 2
    )
    path = tmp_path / "some.view.json"
    write_view(path, view.model_copy(update={"label_set": "labels"}))
    whole, some = cells(sets["codes"]), cells(path)
    assert list(some) == [f"row/{i}" for i in (0, 2, 4, 6, 8, 10)]
    assert all(some[name] == whole[name] for name in some)
    assert findings(path) == []
    recode([open_label_set(path)], tmp_path / "out", codec=PLAIN_1, how="curate")
    assert cells(tmp_path / "out") == some
    assert findings(tmp_path / "out") == []


@pytest.mark.parametrize("file", ["hidden/part-000001.parquet", "head/head.safetensors"])
def test_only_intact_states_are_shared(sets: dict[str, Path], tmp_path: Path, file: str) -> None:
    shutil.copytree(sets["half"], tmp_path / "set")
    complete = open_complete_set(tmp_path / "set")
    assert {file, "index/hidden-000000.parquet"} < set(complete.files)
    assert complete.extra_files == ()
    data = (tmp_path / "set" / file).read_bytes()
    (tmp_path / "set" / file).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(LabelSetError, match="altered"):
        open_complete_set(tmp_path / "set")


def test_export_says_that_states_are_lost(sets: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    facts = export(sets["half"], file, "jsonl", limit=2, lossy=False, replace=False)
    assert "hidden states of the teacher" in facts["loses"]


def test_polars_sees_vectors_and_reads_hidden_states_only_for_them(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    frame = scan(sets["half"])
    row = frame.filter(pl.col("id") == "row/4").select("layer_3", "id").collect()
    vectors = np.array(row["layer_3"][0].to_list(), np.float32)
    assert np.array_equal(vectors, states_of(4, len(vectors))[:, 1].astype(np.float16))
    longer = frame.filter(pl.col("final").list.len() > 5).collect()
    assert longer["n_labels"].min() == 6
    assert longer["final"].dtype == pl.List(pl.Array(pl.Float32, WIDTH))
    shutil.copytree(sets["half"], tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "hidden")
    assert scan(tmp_path / "set").select("id", "topk_ids").collect().height == 12
    with pytest.raises(Exception, match="the hidden states are missing"):
        scan(tmp_path / "set").select("final").collect()


@pytest.mark.parametrize("how", ["flipped", "deleted"])
@pytest.mark.parametrize(
    "file", ["index/hidden-000000.parquet", "manifest.json", "journal/unit-000001.json"]
)
def test_repair_rebuilds_the_records_of_states(
    sets: dict[str, Path], tmp_path: Path, file: str, how: str
) -> None:
    path = tmp_path / "set"
    shutil.copytree(sets["codes"], path)
    damage(path / file, how)
    assert run_repair(RepairConfig(str(path))) == 0
    assert findings(path) == []
    assert cells(path) == cells(sets["codes"])


def test_repair_rebuilds_the_record_from_hidden_parts(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    """Manifest, index and journal are lost; hidden parts state layers, codec and bases."""
    path = tmp_path / "set"
    shutil.copytree(sets["codes"], path)
    (path / "manifest.json").unlink()
    shutil.rmtree(path / "index")
    for entry in (path / "journal").glob("*.json"):
        entry.unlink()
    assert run_repair(RepairConfig(str(path))) == 0
    found, before = open_label_set(path).states, open_label_set(sets["codes"]).states
    assert found is not None
    assert before is not None
    assert (found.layers, found.codec) == (before.layers, before.codec)
    assert set(found.files) == set(before.files)
    assert findings(path) == []


@pytest.mark.parametrize("how", ["flipped", "deleted", "cut"])
def test_repair_redoes_the_unit_that_lost_its_states(
    sets: dict[str, Path], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set"
    shutil.copytree(sets["half"], path)
    damage(path / "hidden/part-000001.parquet", how)
    assert run_repair(RepairConfig(str(path), as_json=True)) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["redo"] == [1]
    assert read_manifest(path).hidden_pages is None
    assert finished_unit(path, 0) is not None
    assert read_entry(path, 1) is None


def test_a_lost_head_is_left_to_the_user(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sets["codes"], tmp_path / "set")
    (tmp_path / "set" / "head" / "basis_final.safetensors").unlink()
    assert run_repair(RepairConfig(str(tmp_path / "set"), as_json=True)) == 1
    (left,) = json.loads(capsys.readouterr().out)["left"]
    assert left.startswith("head/basis_final.safetensors is missing or altered")


def test_a_unit_is_done_with_both_files(sets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(sets["half"], tmp_path / "set")
    sizes = {f"{n}/part-000000.parquet": 0 for n in ("shards", "hidden")}
    sizes = {name: (tmp_path / "set" / name).stat().st_size for name in sizes}
    assert finished_unit(tmp_path / "set", 0, sizes) is not None
    assert finished_unit(tmp_path / "set", 0, sizes | {"hidden/part-000000.parquet": 1}) is None
    damage(tmp_path / "set" / "hidden/part-000000.parquet", "cut")
    assert finished_unit(tmp_path / "set", 0) is None


def test_merged_journals_keep_states(tmp_path: Path) -> None:
    """The entries of 256 units become one file; index and digest stay the same."""
    many = write_state_set(tmp_path / "many", STATES_1, units=BATCH)
    before = open_label_set(many)
    finalize(many, read_manifest(many))
    after = open_label_set(many)
    assert (many / "journal" / "units-000000.parquet").is_file()
    assert after.content_digest == before.content_digest
    assert after.manifest.hidden_pages == before.manifest.hidden_pages
    entry = read_entry(many, 7)
    assert entry is not None
    assert entry.hidden is not None
    assert after.manifest.totals is not None
    stored = sum(f.stat().st_size for f in (many / "hidden").iterdir())
    assert after.manifest.totals.hidden_bytes == stored == after.hidden.stored_bytes


def test_a_full_disk_leaves_finished_units(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, fsync = open_label_set(sets["half"]), tmp_path / "out", os.fsync

    def full(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.name == "hidden" and path.name.endswith("part-000001.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SoftshardsError, match="the disk is full"):
            recode([source], out, codec=COMPACT_1, how="convert")
    assert finished_unit(out, 0) is not None
    assert finished_unit(out, 1) is None
    resumed_like_uninterrupted(sets["half"], out)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed-in-states", "killed-in-entry"])
def test_kill_9_leaves_a_set_that_is_finished_the_same(
    sets: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    """Killed while hidden states are synced, and between both files of a unit and its entry."""
    server = fork_server("tests.labeler.preload")
    out = tmp_path / "out"
    killed = server.run("tests.labeler.faults", fault, "convert", sets["half"], out)
    assert killed.returncode == -signal.SIGKILL
    assert finished_unit(out, 0) is not None
    assert finished_unit(out, 1) is None
    resumed_like_uninterrupted(sets["half"], out)


def resumed_like_uninterrupted(source: Path, out: Path) -> None:
    """Resume a conversion, and compare its files with one that was not interrupted."""
    whole = out.with_name("whole")
    for path in (out, whole):
        recode([open_label_set(source)], path, codec=COMPACT_1, how="convert")
    for folder in ("shards", "hidden", "head", "index"):
        assert contents(out / folder) == contents(whole / folder)
    assert findings(out) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    half = len(data) // 2
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[:half])
    else:
        file.write_bytes(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
