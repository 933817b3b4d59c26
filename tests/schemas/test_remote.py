"""Label sets in an object store: read like local ones, cached within bounds, always verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fsspec
import polars as pl
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from schemas import LabelSet, LabelSetError, SoftshardsError, open_label_set, scan
from schemas.cache_folder import CACHE
from schemas.fingerprint import sha256_bytes
from schemas.remote import CACHE_GB
from schemas.view import read_view, view_target, write_view
from tests.objects import BUCKET, bucket, upload
from tests.schemas.sets import CODECS, varied_set, varied_table, write_set
from tests.schemas.test_view import every_other

NAMES = ["plain", "compact", "half.view.json"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    names = [codec.split("/")[0] for codec in CODECS]
    paths = {name: varied_set(folder / name, codec) for name, codec in zip(names, CODECS)}
    view = every_other(open_label_set(paths["compact"]), folder / "half.view.json")
    write_view(view, read_view(view).model_copy(update={"label_set": "compact"}))
    return paths | {view.name: view}


@pytest.fixture(scope="module")
def _store(sets: dict[str, Path], object_store: None) -> None:  # noqa: ARG001
    for name, path in sets.items():
        upload(path, f"sets/{name}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def ranges(cache: Path) -> list[Path]:
    return sorted((cache / "ranges").iterdir())


def rows(labels: LabelSet) -> pa.Table:
    return pa.concat_tables(labels.read_row_group(group) for group in labels.row_groups)


@pytest.mark.slow
@pytest.mark.usefixtures("_store", "cache")
@pytest.mark.parametrize("name", NAMES)
def test_a_set_in_an_object_store_reads_like_a_local_one(name: str, sets: dict[str, Path]) -> None:
    local, there = open_label_set(sets[name]), open_label_set(f"{BUCKET}/sets/{name}")
    assert rows(there).equals(rows(local))
    assert there.content_digest == local.content_digest
    assert there.shard_facts(there.row_groups[0]) == local.shard_facts(local.row_groups[0])
    assert there.stored_bytes == sum((local.path / s).stat().st_size for s in local.shards)
    assert there.place == f"{BUCKET}/sets/{local.path.name}"
    query = pl.col("n_labels") > 9
    found = scan(f"{BUCKET}/sets/{name}").filter(query).collect()
    assert found.equals(scan(sets[name]).filter(query).collect())


@pytest.mark.usefixtures("_store", "cache")
def test_reads_are_cached(sets: dict[str, Path]) -> None:
    url = upload(sets["plain"], "read-once")
    truth = rows(open_label_set(url))
    bucket().rm(f"{url}/shards", recursive=True)
    again = open_label_set(url)
    assert rows(again).equals(truth)
    assert scan(url).collect().equals(pl.DataFrame(truth))


@pytest.mark.usefixtures("_store")
def test_the_cache_is_verified_on_each_use(sets: dict[str, Path], cache: Path) -> None:
    url = f"{BUCKET}/sets/plain"
    truth = rows(open_label_set(url))
    for path in ranges(cache):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert rows(open_label_set(url)).equals(truth)  # fetched again, and repaired
    stretches = {group.bytes.sha256 for group in open_label_set(sets["plain"]).row_groups}
    assert stretches <= {path.name for path in ranges(cache)}
    assert all(sha256_bytes(path.read_bytes()) == path.name for path in ranges(cache))


@pytest.mark.slow
@pytest.mark.usefixtures("_store")
def test_an_altered_row_group_is_neither_used_nor_cached(
    sets: dict[str, Path], cache: Path
) -> None:
    url = upload(sets["plain"], "altered")
    labels = open_label_set(url)
    group = labels.row_groups[1]
    shard = f"{url}/{group.shard}"
    data = bytearray(bucket().cat_file(shard))
    data[(group.bytes.start + group.bytes.stop) // 2] ^= 1
    bucket().pipe_file(shard, bytes(data))
    with pytest.raises(LabelSetError, match=r"s3://.*row group 1 was altered") as refusal:
        labels.read_row_group(group)
    assert "upload the label set again" in str(refusal.value)
    with pytest.raises(LabelSetError, match=r"s3://.*row group 1 was altered"):
        labels.read_row_group(group, data=labels.reader.fetch(group))
    assert group.bytes.sha256 not in {path.name for path in ranges(cache)}
    bucket().rm(shard)
    with pytest.raises(LabelSetError, match=r"s3://.*: the shard is missing"):
        open_label_set(url).read_row_group(group)


@pytest.mark.slow
@pytest.mark.usefixtures("_store")
def test_the_cache_stays_within_its_limit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [varied_table(10 * group, 10, longest=200) for group in range(64)]
    shards = [tables[first : first + 8] for first in range(0, 64, 8)]
    url = upload(write_set(tmp_path / "set", shards, CODECS[0]), "large")
    stored = open_label_set(url).stored_bytes
    allowed = stored // 2
    monkeypatch.setenv(CACHE_GB, str(allowed / 1e9))
    for _ in range(2):
        labels = open_label_set(url)
        for group in labels.row_groups:
            labels.read_row_group(group)
            assert sum(path.stat().st_size for path in ranges(cache)) <= allowed
    assert sum(path.stat().st_size for path in ranges(cache)) > allowed // 2
    monkeypatch.setenv(CACHE_GB, "0")
    monkeypatch.setenv(CACHE, str(tmp_path / "none"))
    assert rows(open_label_set(url)).num_rows == 640
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv(CACHE_GB, "much")
    with pytest.raises(SoftshardsError, match="SOFTSHARDS_CACHE_GB=much"):
        rows(open_label_set(url))


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem that fails the first requests for each file."""

    protocol = "flaky"
    failures: ClassVar[dict[str, int]] = {}
    times: ClassVar[int] = 1

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("flaky://", "memory://")))

    def cat_file(self, path: str, **options: Any) -> bytes:
        failed = self.failures.get(path, 0)
        self.failures[path] = failed + 1
        if failed < self.times:
            raise ConnectionResetError("reset by peer")
        return super().cat_file(path, **options)


@pytest.mark.usefixtures("cache")
def test_failed_requests_are_retried(
    sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)
    fsspec.filesystem("flaky").put(f"{sets['plain']}/", "/flaky/", recursive=True)
    assert rows(open_label_set("flaky://flaky")).equals(rows(open_label_set(sets["plain"])))
    assert min(Flaky.failures.values()) == 2
    monkeypatch.setattr(Flaky, "times", 1000)
    with pytest.raises(LabelSetError, match=r"ConnectionResetError.*\n.*hint: check the network"):
        open_label_set("flaky://flaky")


def test_paths_are_joined() -> None:
    assert view_target("s3://b/views/half.view.json", "../labels") == "s3://b/labels"
    assert view_target("s3://b/half.view.json", "labels") == "s3://b/labels"
    assert view_target("views/half.view.json", "../labels") == "views/../labels"
