"""`schemas.scan`: the results of Polars, verified reads, and no needless ones."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import LabelSetError, SoftshardsError, facts, open_label_set, scan
from schemas.arrow import COMPACT_COLUMNS, TOPK_COLUMNS
from schemas.codec import LABEL_COLUMNS, OPTIONAL_LABEL_COLUMNS
from tests.schemas.sets import CODECS, GOLDEN, varied_set
from tests.schemas.test_view import every_other

LABELS = {*TOPK_COLUMNS, *COMPACT_COLUMNS, *LABEL_COLUMNS, *OPTIONAL_LABEL_COLUMNS}
Step = Callable[[Any], Any]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return by name a set in each codec, and a view of each."""
    folder = tmp_path_factory.mktemp("sets")
    paths = {}
    for codec in CODECS:
        name = codec.split("/")[0]
        paths[name] = varied_set(folder / name, codec)
        half = folder / f"{name}.view.json"
        paths[f"{name}-view"] = every_other(open_label_set(paths[name]), half)
    return paths


@pytest.fixture(scope="module")
def truth(sets: dict[str, Path]) -> dict[str, pl.DataFrame]:
    """Return all rows of each, from the reader that hashes every row group first."""
    opened = {name: open_label_set(path) for name, path in sets.items()}
    return {
        name: pl.concat(pl.DataFrame(labels.read_row_group(g)) for g in labels.row_groups)
        for name, labels in opened.items()
    }


WIDE = st.integers(-1, 26)
STEPS: st.SearchStrategy[Step] = st.one_of(
    WIDE.map(lambda n: lambda f: f.filter(pl.col("n_labels") > n)),
    WIDE.map(lambda n: lambda f: f.filter(pl.col("topk_ids").list.len() <= n)),
    WIDE.map(lambda n: lambda f: f.filter((pl.col("n_tokens") > n) | pl.col("source").is_null())),
    st.just(lambda f: f.filter(pl.col("mean_nll") < 0.6, pl.col("source") == "a.jsonl")),
    st.just(lambda f: f.filter(pl.col("n_labels") > pl.col("n_labels").mean())),
    st.just(lambda f: f.filter(pl.col("tail_logprob").list.max() > -1)),
    st.integers(0, 30).map(lambda n: lambda f: f.head(n)),
    st.integers(0, 30).map(lambda n: lambda f: f.tail(n)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda p: lambda f: f.slice(*p)),
    st.just(lambda f: f.with_columns(twice=pl.col("n_labels") * 2)),
    st.just(lambda f: f.sort("coverage")),
)
COLUMNS = st.lists(
    st.sampled_from(["id", "n_labels", "source", "topk_ids", "topk_logprobs", "spans", "mean_nll"]),
    min_size=1,
    unique=True,
)


@pytest.mark.slow
@given(
    name=st.sampled_from(["plain", "compact", "plain-view", "compact-view"]),
    steps=st.lists(STEPS, max_size=4),
    columns=st.none() | COLUMNS,
    streaming=st.booleans(),
)
@settings(max_examples=150)
def test_any_query_gives_the_result_for_rows_in_memory(
    sets: dict[str, Path],
    truth: dict[str, pl.DataFrame],
    name: str,
    steps: list[Step],
    columns: list[str] | None,
    streaming: bool,
) -> None:
    lazy, eager = scan(sets[name]), truth[name]
    for step in steps:
        lazy, eager = step(lazy), step(eager)
    if columns is not None:
        lazy, eager = lazy.select(columns), eager.select(columns)
    assert lazy.collect(engine="streaming" if streaming else "in-memory").equals(eager)


@pytest.mark.parametrize("name", ["plain", "compact"])
def test_counts_batches_and_joins(
    sets: dict[str, Path], truth: dict[str, pl.DataFrame], name: str
) -> None:
    frame = scan(sets[name])
    assert frame.select(pl.len()).collect().item() == 24
    joined = frame.join(frame.filter(pl.col("n_labels") > 9), on="id").select(
        "id", "topk_ids_right"
    )
    long = truth[name].filter(pl.col("n_labels") > 9)
    assert sorted(joined.collect()["id"]) == sorted(long["id"])
    assert frame.collect_schema() == truth[name].schema
    assert pl.concat(frame.collect_batches(chunk_size=2)).equals(truth[name])


class Recorder(io.FileIO):
    """A file that records the byte ranges read from it."""

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        start = self.tell()
        data = super().read(size)
        Recorded.read.append((str(self.name), start, start + len(data or b"")))
        return data or b""


class Recorded(LocalFileSystem):
    """The local disk, as `recorded://`."""

    protocol = "recorded"
    read: ClassVar[list[tuple[str, int, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("recorded://")))

    def _open(self, path: str, *_: Any, **__: Any) -> Recorder:
        return Recorder(path)


def label_chunks(path: Path) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """Return the byte ranges of label columns, by shard and row group."""
    found = {}
    for shard in sorted((path / "shards").iterdir()):
        footer = pq.read_metadata(shard)
        for index in range(footer.num_row_groups):
            group = footer.row_group(index)
            chunks = [group.column(i) for i in range(group.num_columns)]
            found[str(shard), index] = [
                (c.data_page_offset, c.data_page_offset + c.total_compressed_size)
                for c in chunks
                if c.path_in_schema.split(".")[0] in LABELS
            ]
    return found


def label_reads(path: Path) -> set[tuple[str, int]]:
    """Return the row groups from whose label columns a byte was read."""
    return {
        (shard, index)
        for (shard, index), chunks in label_chunks(path).items()
        for name, start, stop in Recorded.read
        if name == shard and any(start < end and begin < stop for begin, end in chunks)
    }


@pytest.mark.parametrize("name", ["plain", "compact"])
def test_filters_on_scalars_never_read_labels(sets: dict[str, Path], name: str) -> None:
    """Asserted by the byte ranges requested from the filesystem."""
    fsspec.register_implementation("recorded", Recorded, clobber=True)
    path = sets[name]
    size = sum(shard.stat().st_size for shard in (path / "shards").iterdir())
    frame = scan(f"recorded://{path}")

    def read(query: pl.LazyFrame) -> tuple[pl.DataFrame, set[tuple[str, int]]]:
        Recorded.read.clear()
        return query.collect(), label_reads(path)

    rows, groups = read(frame.filter(pl.col("n_labels") > 1000))
    assert (rows.height, groups) == (0, set())
    rows, groups = read(frame.filter(pl.col("mean_nll") < 0.5).select("id", "n_labels"))
    assert rows.height > 0
    assert groups == set()
    rows, groups = read(frame.filter(pl.col("id") == "row/13").filter(pl.col("n_tokens") > 1))
    assert rows["topk_ids"].list.len().item() == rows["n_labels"].item()
    assert groups == {(str(path / "shards" / "part-000001.parquet"), 1)}
    rows, groups = read(
        frame.filter(pl.col("topk_logprobs").list.len() > 0).filter(pl.col("id") == "row/2")
    )
    assert len(groups) == rows.height == 1, "a filter on labels comes after those on scalars"
    assert sum(stop - start for _, start, stop in Recorded.read) < size
    _, groups = read(frame.select("topk_ids"))
    assert len(groups) == 6, "the record is one of reads"


@pytest.mark.parametrize("name", ["plain", "compact"])
def test_labels_that_are_not_read_are_not_checked_and_others_are(
    sets: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Zeros in place of labels are detected where labels, or whole row groups, are read."""
    path = tmp_path / "labels"
    shutil.copytree(sets[name], path)
    for (shard, _), chunks in label_chunks(path).items():
        content = bytearray(Path(shard).read_bytes())
        for start, stop in chunks:
            content[start:stop] = bytes(stop - start)
        Path(shard).write_bytes(content)
    scalars = pl.col("id", "n_labels")
    ids = scan(path).filter(pl.col("n_labels") > 3).select(scalars).collect()
    assert ids.equals(scan(sets[name]).filter(pl.col("n_labels") > 3).select(scalars).collect())
    with pytest.raises(LabelSetError, match="was altered"):
        scan(path).filter(pl.col("n_labels") > 3).select("topk_ids").collect()
    with pytest.raises(LabelSetError, match="was altered"):
        scan(path, verify="full").select("id").collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "compact"])
def test_altered_shards_are_detected(sets: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Flips, cuts and overwritten ranges, most in page headers; few or all columns are read."""
    rng = random.Random(name)
    path = tmp_path / "labels"
    shutil.copytree(sets[name], path)
    truth = scan(path).collect()
    shards = sorted((path / "shards").iterdir())
    named = []
    for change in range(250):
        shard = rng.choice(shards)
        original = shard.read_bytes()
        altered = bytearray(original)
        column = rng.choice(truth.columns)
        place = rng.randrange(len(altered)) if change % 3 else _header(shard, rng)
        if change % 5 == 0:
            altered[place : place + 16] = rng.randbytes(len(altered[place : place + 16]))
        elif change % 31 == 0:
            altered = altered[:place]
        else:
            altered[place] ^= 1 << rng.randrange(8)
        shard.write_bytes(altered)
        for query in (pl.all(), pl.col(column)):
            try:
                rows = scan(path).select(query).collect()
            except LabelSetError as error:
                named.append(shard.name in str(error))
            else:
                assert rows.equals(truth.select(query)), (shard.name, place)
        shard.write_bytes(original)
    assert all(named)
    assert len(named) > 250


def _header(shard: Path, rng: random.Random) -> int:
    """Return an offset in the first bytes of a column, where a page header is."""
    group = pq.read_metadata(shard).row_group(0)
    return group.column(rng.randrange(group.num_columns)).data_page_offset + rng.randrange(30)


def test_raw_polars_checks_nothing(tmp_path: Path) -> None:
    """The reason for `scan`: raw Polars reads the same flip silently."""
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    shard = sorted((labels / "shards").iterdir())[0]
    group = pq.read_metadata(shard).row_group(0)
    column = next(
        c
        for c in (group.column(i) for i in range(group.num_columns))
        if c.path_in_schema.startswith("coverage")
    )
    content = bytearray(shard.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    shard.write_bytes(content)
    query = pl.col("coverage")
    raw = pl.scan_parquet(labels / "shards/*.parquet").select(query).collect()
    assert not raw.equals(scan(GOLDEN).select(query).collect())
    with pytest.raises(LabelSetError, match="was altered"):
        scan(labels).select(query).collect()


def test_a_set_behind_a_url(sets: dict[str, Path], truth: dict[str, pl.DataFrame]) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("plain", "compact"):
        memory.put(f"{sets[name]}/", f"/bucket/{name}/", recursive=True)
        assert scan(f"memory://bucket/{name}").collect().equals(truth[name])
        found = facts(f"memory://bucket/{name}")
        assert found["rows"] == 24
        assert found["path"] == f"memory://bucket/{name}"
    memory.rm("/bucket/plain/shards/part-000001.parquet")
    with pytest.raises(LabelSetError, match=r"part-000001.parquet: the shard is missing"):
        scan("memory://bucket/plain").collect()
    with pytest.raises(LabelSetError, match=r"nothing/manifest.json: there is no such object"):
        scan("memory://bucket/nothing")
    with pytest.raises(LabelSetError, match="cannot be used: Protocol not known"):
        scan("nosuch://bucket/nothing")


def test_facts(sets: dict[str, Path]) -> None:
    labels = open_label_set(sets["compact-view"])
    frame = scan(sets["compact-view"])
    assert frame.labels.facts == facts(sets["compact-view"])
    assert frame.labels.facts["rows"] == labels.rows < 24
    assert frame.labels.facts["identity"]["k"] == 6
    assert frame.labels.facts["view"] == {"by": "a test"}
    with pytest.raises(SoftshardsError, match=r"schemas\.facts"):
        _ = frame.select("id").labels.facts


def test_missing_and_unfinished(sets: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "labels"
    shutil.copytree(sets["plain"], path)
    (path / "shards" / "part-000002.parquet").unlink()
    assert scan(path).head(3).collect().height == 3, "only shards that are read must be there"
    with pytest.raises(LabelSetError, match=r"part-000002.parquet: the shard is missing"):
        scan(path).collect()
    with pytest.raises(LabelSetError, match=r"manifest\.json is missing"):
        scan(tmp_path)


def test_a_failing_user_condition_is_not_blamed_on_the_shard(
    sets: dict[str, Path],
) -> None:
    def broken(_: pl.Series) -> pl.Series:
        raise ValueError("mine")

    condition = pl.col("n_labels").map_batches(broken, return_dtype=pl.Boolean, is_elementwise=True)
    with pytest.raises(Exception, match="mine") as caught:
        scan(sets["plain"]).filter(condition).collect()
    assert not isinstance(caught.value, LabelSetError)
    assert np.isfinite(scan(sets["plain"]).collect()["coverage"].to_numpy()).all()
