"""Links and names that lead out of a set: refused wherever sets are read or written (3, 12, 5)."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from labeler.labeling.runs.locks import exclusive_lock
from labeler.labeling.writing.set_place import SetPlace
from labeler.labelsets.hub.complete_set import open_complete_set
from labeler.labelsets.repair.repair import run_repair
from labeler.labelsets.repair.repair_config import RepairConfig
from schemas import LabelSetError, SoftshardsError, open_label_set
from schemas.fingerprint import sha256_bytes
from schemas.range_cache import open_range_cache
from tests.hostile.sealed import (
    findings,
    read_json,
    reseal,
    trained_on,
    write_index_page,
    write_json,
)
from tests.schemas.sets import CODECS, GOLDEN, varied_set

PARTS = (
    *("manifest.json", "ledger.json", "plan.parquet", "index", "index/page-000000.parquet"),
    *("shards", "shards/part-000001.parquet", "tokenizer", "tokenizer/tokenizer.json"),
    *("journal", "journal/unit-000000.json", "journal/unit-000000.rejects.parquet"),
    "journal/plan.rejects.parquet",
)
READ_BY_TRAINER = ("manifest", "index", "shards", "tokenizer")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "labels")
    return tmp_path / "labels"


def link_out(path: Path) -> Path:
    """Move a file or folder out of a set, and put a link to it in its place."""
    inside = path.parent.name in ("index", "shards", "tokenizer", "journal")
    target = path.parents[2 if inside else 1] / f"outside-{path.name}"
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("part", PARTS)
def test_a_linked_part_is_refused_by_name(part: str, labels: Path) -> None:
    link_out(labels / part)
    assert any("symbolic link" in finding for finding in findings(labels))
    with pytest.raises(LabelSetError, match="symbolic link"):
        open_complete_set(labels)  # push and artifact
    refused = trained_on(labels)
    assert (refused is not None) == part.startswith(READ_BY_TRAINER)
    assert refused is None or part.split("/")[0].split(".")[0] in refused


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_written_through_a_link(part: str, labels: Path) -> None:
    target = link_out(labels / part)
    before = snapshot(target)
    with pytest.raises(SoftshardsError, match="symbolic link"):
        run_repair(RepairConfig(labels))
    place = SetPlace(labels)
    with pytest.raises(SoftshardsError, match="symbolic link"), exclusive_lock(place, "test"):
        pass
    assert snapshot(target) == before


@pytest.mark.parametrize("name", [".lock", ".lock-0-of-1", "quarantine", ".cache", "notes.txt"])
def test_nothing_is_written_through_a_link_beside_the_set(name: str, labels: Path) -> None:
    """A lock that is a link would truncate what it points to."""
    precious = labels.parent / "precious"
    precious.write_text("precious")
    (labels / name).symlink_to(precious)
    place = SetPlace(labels)
    with pytest.raises(SoftshardsError, match="symbolic link"), exclusive_lock(place, "test"):
        pass
    with pytest.raises(SoftshardsError, match="symbolic link"):
        run_repair(RepairConfig(labels))
    assert precious.read_text() == "precious"


def snapshot(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {file.name: file.read_bytes() for file in files}


def test_a_key_behind_a_link_is_not_part_of_what_is_sent(labels: Path) -> None:
    key = labels.parent / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    for place in ("tokenizer/special_tokens_map.json", "shards/part-000009.parquet"):
        (labels / place).symlink_to(key)
        with pytest.raises(LabelSetError, match="symbolic link"):
            open_complete_set(labels)
        (labels / place).unlink()
    (labels / "notes.txt").symlink_to(key)
    with pytest.raises(LabelSetError, match="symbolic link"):
        open_complete_set(labels)


def test_only_declared_files_are_sent(labels: Path) -> None:
    (labels / "notes.txt").write_text("private")
    complete = open_complete_set(labels)
    assert complete.extra_files == ("expected.json", "notes.txt")
    assert not {"notes.txt", "expected.json"} & set(complete.files)
    for surplus in ("tokenizer/notes.json", "hidden/x", "index/page-000007.parquet"):
        (labels / surplus).parent.mkdir(exist_ok=True)
        (labels / surplus).write_text("private")
        with pytest.raises(LabelSetError, match="not declared"):
            open_complete_set(labels)
        (labels / surplus).unlink()


def test_a_pipe_is_refused_and_not_waited_for(labels: Path) -> None:
    shard = labels / "shards" / "part-000000.parquet"
    shard.unlink()
    os.mkfifo(shard)
    assert any("not a regular file" in finding for finding in findings(labels))
    assert "not a regular file" in str(trained_on(labels))


OUTSIDE = (
    *("../outside/part.parquet", "/etc/hostname", "shards/../../x.parquet", "shards//part.parquet"),
    *("shards/part-000001.parquet", "tokenizer/tokenizer.json", "manifest.json", "shards"),
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_another_file(name: str, labels: Path) -> None:
    page = labels / "index" / "page-000000.parquet"
    rows = pq.read_table(page).to_pylist()
    for row in rows:
        row["shard"] = name if row["unit"] == 0 else row["shard"]
    write_index_page(labels, rows)
    reseal(labels)
    assert "this is not an index page" in findings(labels)[0]
    assert "this is not an index page" in str(trained_on(labels))


@pytest.mark.parametrize("name", [*OUTSIDE, "plan-1.parquet", ".", "", "tokenizer\\x", "a:b"])
@pytest.mark.parametrize("field", ["plan", "index_pages", "tokenizer_files", "plan_rejects"])
def test_a_manifest_cannot_name_another_file(field: str, name: str, labels: Path) -> None:
    if field == "tokenizer_files" and name == "tokenizer/tokenizer.json":
        return
    content = read_json(labels / "manifest.json")
    file = {"path": name, "sha256": "0" * 64}
    content[field] = file if field == "plan" else [file]
    write_json(labels / "manifest.json", content)
    (finding,) = findings(labels)
    assert "the manifest cannot be read" in finding
    with pytest.raises(LabelSetError, match="the manifest cannot be read"):
        open_label_set(labels)


def test_an_entry_cannot_name_another_shard(labels: Path) -> None:
    entry = labels / "journal" / "unit-000000.json"
    for shard in OUTSIDE:
        write_json(entry, read_json(entry) | {"shard": shard})
        assert any("the journal entry cannot be read" in finding for finding in findings(labels))


def test_the_cache_is_plain_files_of_this_user(tmp_path: Path) -> None:
    cache = open_range_cache(tmp_path / "cache", 100)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    data = b"x" * 30
    digest = sha256_bytes(data)
    cache.put(digest, data)
    assert cache.get(digest, len(data)) == data
    (cache.folder / digest).write_bytes(b"y" * 30)
    assert cache.get(digest, len(data)) is None  # altered
    (cache.folder / digest).unlink()
    (tmp_path / "secret").write_bytes(data)
    (cache.folder / digest).symlink_to(tmp_path / "secret")
    assert cache.get(digest, len(data)) is None  # a link
    cache.put(digest, data)
    assert not (cache.folder / digest).is_symlink()
    (cache.folder / digest).unlink()
    os.mkfifo(cache.folder / digest)  # opened as usual, it waits for a writer
    assert cache.get(digest, len(data)) is None
    cache.put(digest, data)
    (cache.folder / digest).write_bytes(data * 9)
    assert cache.get(digest, len(data)) is None  # of another size, which is not read
    for name in ("../secret", "x" * 64, ""):
        with pytest.raises(ValueError, match="not a SHA-256"):
            cache.get(name, 1)


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = open_range_cache(tmp_path / "cache", 100)
    parts = [bytes([n]) * 30 for n in range(4)]
    for n, part in enumerate(parts[:3]):
        cache.put(sha256_bytes(part), part)
        os.utime(cache.folder / sha256_bytes(part), (n, n))
    assert cache.get(sha256_bytes(parts[0]), len(parts[0])) == parts[0]
    cache.put(sha256_bytes(parts[3]), parts[3])
    assert [cache.get(sha256_bytes(part), len(part)) is not None for part in parts] == [1, 0, 1, 1]
    cache.put(sha256_bytes(b"z" * 101), b"z" * 101)
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) == 90


def test_a_cache_in_a_strangers_place_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "ranges").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        open_range_cache(tmp_path / "cache", 100)
    (tmp_path / "cache" / "ranges").unlink()
    (tmp_path / "cache" / "ranges").mkdir(mode=0o777)
    opened = open_range_cache(tmp_path / "cache", 100)
    assert stat.S_IMODE(opened.folder.stat().st_mode) == 0o700


def test_a_pickle_in_the_cache_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that kept the cache before unpickled what it found in its folder."""
    monkeypatch.setenv("SOFTSHARDS_CACHE", str(tmp_path / "cache"))
    varied_set(tmp_path / "labels", CODECS[0])
    opened = open_label_set(f"file://{tmp_path}/labels")
    opened.read_row_group(opened.row_groups[0])
    assert "diskcache" not in sys.modules
    assert all(len(path.name) == 64 for path in (tmp_path / "cache" / "ranges").iterdir())
