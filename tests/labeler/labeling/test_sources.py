"""Inputs that the command line can name: their records, in order, and the names they get."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.input_identity import input_digests, parent_sets
from labeler.labeling.inputs.read_records import Record, Reject, read_records
from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, open_label_set, scan
from schemas.fingerprint import tokenizer_digest
from schemas.manifest import read_manifest, write_manifest
from tests.labeler.conftest import Settings
from tests.labeler.hf_dataset import save_dataset, save_dataset_dict
from tests.labeler.web import served

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1-plain-1"


def read(*inputs: Path | str) -> list[Record | Reject]:
    return [r for f in find_inputs([str(path) for path in inputs]) for r in read_records(f)]


def texts(*inputs: Path | str) -> dict[str, str]:
    return {r.id: r.columns["text"] for r in read(*inputs) if isinstance(r, Record)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several formats, in folders, among files that must not be read."""
    path = tmp_path / "in"
    for name in ("b", "c", ".hidden"):
        (path / name).mkdir(parents=True)
        (path / name / "x.txt").write_text(f"text of {name}")
    (path / "b" / "notes.md").write_text("not read")
    (path / ".a.jsonl").write_text("not read")
    (path / "z.jsonl").write_text('{"text": "z0"}\n{"text": "z1"}\n')
    pq.write_table(pa.table({"text": ["p", "q"]}), path / "a.parquet")
    return path


FOLDER = {
    "a.parquet:0": "p",
    "a.parquet:1": "q",
    "b/x.txt:0": "text of b",
    "c/x.txt:0": "text of c",
    "z.jsonl:0": "z0",
    "z.jsonl:1": "z1",
}


def test_folder_is_read_in_order_and_named_relative_to_it(folder: Path) -> None:
    assert list(texts(folder).items()) == list(FOLDER.items())


def test_links_to_files_are_read_and_links_to_folders_are_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("linked")
    (folder / "linked.txt").symlink_to(tmp_path / "blob")
    (folder / "loop").symlink_to(folder)
    assert texts(folder) == FOLDER | {"linked.txt:0": "linked"}
    assert texts(folder / "loop") == texts(folder)  # a link that is named itself is followed


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["z.jsonl:0", "z.jsonl:1"]),
        ("*/x.txt", ["b/x.txt:0", "c/x.txt:0"]),
        ("**/*.txt", ["b/x.txt:0", "c/x.txt:0"]),
        ("?", ["b/x.txt:0", "c/x.txt:0"]),  # folders are searched
        ("[a-b]*", ["a.parquet:0", "a.parquet:1", "b/x.txt:0"]),
        ("**", list(FOLDER)),  # each file once
        (".h*/*", [".hidden/x.txt:0"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]) -> None:
    assert list(texts(f"{folder}/{pattern}")) == expected


def test_a_file_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("none")
    assert texts(tmp_path / "a[1].txt") == {"a[1].txt:0": "brackets"}


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="no such file"):
        find_inputs([str(tmp_path / "gone.jsonl")])
    with pytest.raises(SoftshardsError, match="no file in this folder"):
        find_inputs([str(tmp_path)])
    with pytest.raises(SoftshardsError, match="no file matches"):
        find_inputs([str(tmp_path / "*.jsonl")])
    with pytest.raises(SoftshardsError, match="no input given"):
        find_inputs([])


def test_a_named_file_of_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    for named in ("a.pdf", "*"):
        with pytest.raises(SoftshardsError, match=r"a\.pdf: cannot read this kind of file"):
            find_inputs([str(tmp_path / named)])


def test_same_name_twice_is_refused(folder: Path) -> None:
    with pytest.raises(SoftshardsError, match="same name"):
        find_inputs([str(folder / "b" / "x.txt"), str(folder / "c" / "x.txt")])


def test_dataset_on_disk(tmp_path: Path) -> None:
    save_dataset(tmp_path / "tales", [{"text": "one"}, {"text": "two"}], [{"text": "three"}])
    expected = {"tales:0": "one", "tales:1": "two", "tales:2": "three"}
    assert list(texts(tmp_path / "tales").items()) == list(expected.items())
    assert texts(tmp_path) == expected


def test_dataset_dict_on_disk(tmp_path: Path) -> None:
    splits = {"train": [{"text": "one"}, {"text": "two"}], "test": [{"text": "three"}]}
    save_dataset_dict(tmp_path / "tales", splits)
    expected = {"train:0": "one", "train:1": "two", "test:0": "three"}
    assert list(texts(tmp_path / "tales").items()) == list(expected.items())
    assert list(texts(tmp_path)) == ["tales/train:0", "tales/train:1", "tales/test:0"]
    assert list(texts(tmp_path / "tales" / "test").values()) == ["three"]
    shutil.rmtree(tmp_path / "tales" / "test")
    with pytest.raises(SoftshardsError, match="split 'test' of this dataset is missing"):
        find_inputs([str(tmp_path / "tales")])


def test_broken_dataset_is_named(tmp_path: Path) -> None:
    save_dataset(tmp_path / "tales", [{"text": "one"}], [{"text": "two"}])
    (tmp_path / "tales" / "data-00001.arrow").unlink()
    with pytest.raises(SoftshardsError, match=r"data-00001\.arrow"):
        texts(tmp_path / "tales")
    (tmp_path / "tales" / "state.json").write_text("{}")
    with pytest.raises(SoftshardsError, match=r"state\.json.*not a description of a dataset"):
        find_inputs([str(tmp_path / "tales")])


def test_file_url(folder: Path) -> None:
    assert texts(f"file://{folder}") == FOLDER
    assert input_digests(find_inputs([f"file://{folder}/z.jsonl"])) == input_digests(
        find_inputs([str(folder / "z.jsonl")])
    )


def test_web_files_folders_and_patterns(folder: Path) -> None:
    big = "".join(json.dumps({"text": str(i) * 1000}) + "\n" for i in range(2000))
    (folder / "c" / "big.jsonl").write_text(big)  # larger than one of fsspec's blocks
    with served(folder) as url:
        everything = texts(url)
        assert everything == texts(folder)
        assert list(texts(f"{url}/a.parquet?token=1")) == ["a.parquet:0", "a.parquet:1"]
        assert list(texts(f"{url}/*/x.txt")) == ["b/x.txt:0", "c/x.txt:0"]
        with pytest.raises(SoftshardsError, match=r"gone\.jsonl: no such file"):
            find_inputs([f"{url}/gone.jsonl"])
    with pytest.raises(SoftshardsError, match=r"z\.jsonl"):  # the server is gone
        texts(f"{url}/z.jsonl")


def test_a_truncated_download_is_an_error() -> None:
    class Breaks(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"text": "one"}\n')

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Breaks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.jsonl"
        with pytest.raises(SoftshardsError, match=r"a\.jsonl: cannot be read"):
            texts(url)
        server.shutdown()


def test_object_store(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket/", recursive=True)
    assert texts("memory://bucket/in") == FOLDER
    assert list(texts("memory://bucket/in/*.jsonl")) == ["z.jsonl:0", "z.jsonl:1"]
    store.put(str(GOLDEN), "/bucket/labels", recursive=True)
    there, here = ([r.id for r in read(place)] for place in ("memory://bucket/labels", GOLDEN))
    assert there == here


def test_missing_driver_and_unknown_url() -> None:
    fsspec.register_implementation("far", "far_driver.Far", errtxt="install the far driver")
    with pytest.raises(SoftshardsError, match="pip install far_driver"):
        find_inputs(["far://bucket/x.jsonl"])
    with pytest.raises(SoftshardsError, match="no such kind of URL"):
        find_inputs(["nowhere://bucket/x.jsonl"])


def test_digests_change_with_the_input(tmp_path: Path) -> None:
    save_dataset(tmp_path / "tales", [{"text": "one"}], [{"text": "two"}])
    path = tmp_path / "x.txt"
    path.write_text("hello")
    with served(tmp_path) as url:

        def digests() -> list[Any]:
            given = ([str(path)], [f"{url}/x.txt"], [str(tmp_path / "tales")])
            return [input_digests(find_inputs(inputs)) for inputs in given]

        before = digests()
        assert digests() == before
        path.write_text("hellO")
        os.utime(path, (1, 1))
        part = tmp_path / "tales" / "data-00002.arrow"
        part.write_bytes((tmp_path / "tales" / "data-00001.arrow").read_bytes())
        assert all(old != new for old, new in zip(before, digests()))


def test_label_set_as_input() -> None:
    rows = scan(GOLDEN).select("id", "chunk", "sample", "input_ids", "spans").collect().to_dicts()
    found = read(GOLDEN)
    assert [r.id for r in found] == [row["id"] for row in rows]
    assert [r.parent_id for r in found if isinstance(r, Record)] == [f"{r['id']}/0/0" for r in rows]
    for record, row in zip(found, rows):
        assert isinstance(record, Record)
        assert {name: record.columns[name] for name in row if name in record.columns} == {
            name: row[name] for name in ("id", "input_ids", "spans")
        }
    (parent,) = parent_sets(find_inputs([str(GOLDEN)]))
    manifest = read_manifest(GOLDEN)
    assert parent["self_digest"] == manifest.self_digest
    assert parent["weights"] == manifest.identity.weights
    assert parent["tokenizer"] == tokenizer_digest(GOLDEN / "tokenizer")
    assert parent["ancestry"] == []
    assert input_digests(find_inputs([str(GOLDEN)])) == {GOLDEN.name: manifest.self_digest}


def test_chunks_samples_and_meta_of_a_label_set(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "prompt": "the cat sat", "topic": "cats"}\n')
    label(
        [str(tmp_path / "a.jsonl")],
        settings(mode="generate", samples=2, temperature=1.0, max_tokens=4),
    )
    found = read(tmp_path / "labels")
    assert {(r.id, r.parent_id) for r in found if isinstance(r, Record)} == {
        ("a", "a/0/0"),
        ("a/0/1", "a/0/1"),
    }
    generations = scan(tmp_path / "labels").collect()["generation"].to_list()
    for record, generation in zip(found, generations):
        assert isinstance(record, Record)
        assert record.columns["topic"] == "cats"
        assert record.columns["prompt"] == "the cat sat"
        assert record.columns["generation"] == generation


def test_a_damaged_label_set_is_refused_when_it_is_read(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "labels")
    shard = tmp_path / "labels" / open_label_set(GOLDEN).shards[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SoftshardsError, match="was altered"):
        read(tmp_path / "labels")


def test_an_unfinished_label_set_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "labels")
    write_manifest(
        tmp_path / "labels", read_manifest(GOLDEN).model_copy(update={"status": "running"})
    )
    with pytest.raises(SoftshardsError, match="not finished"):
        find_inputs([str(tmp_path / "labels")])


def test_a_label_set_below_a_folder_is_not_read(folder: Path) -> None:
    shutil.copytree(GOLDEN, folder / "labels")
    assert texts(folder) == FOLDER
    (folder / "labels" / "manifest.json").unlink()  # killed before it was written
    assert texts(folder) == FOLDER
    with pytest.raises(SoftshardsError, match=r"manifest\.json is missing"):
        find_inputs([str(folder / "labels")])
