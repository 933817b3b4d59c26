from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from labeler.sources import Record, Reject, file_digests, find_files, read_records
from schemas import SoftshardsError


def read(*inputs: Path) -> list[Record | Reject]:
    return [r for f in find_files([str(path) for path in inputs]) for r in read_records(f)]


def test_json_lines_and_their_zstd_twin_are_the_same_records(tmp_path: Path) -> None:
    text = b'{"text": "one"}\n\n{"text": "two", "n": 2}\n'
    (tmp_path / "a.jsonl").write_bytes(text)
    frames = [zstandard.ZstdCompressor().compress(part) for part in (text[:9], text[9:])]
    compressed = b"".join(frames)
    (tmp_path / "b.jsonl.zst").write_bytes(compressed)
    plain, packed = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl.zst")
    assert [r.columns for r in plain if isinstance(r, Record)] == [
        {"text": "one"},
        {"text": "two", "n": 2},
    ]
    assert [r.columns for r in packed if isinstance(r, Record)] == [
        r.columns for r in plain if isinstance(r, Record)
    ]
    assert [r.id for r in plain] == ["a.jsonl:0", "a.jsonl:2"]


def test_bad_lines_become_rejects_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "one"}\n{"text": \n[1]\n\xff\xfe{}\n{"text": "x"}\n'
    )
    found = read(tmp_path / "a.jsonl")
    rejects = [r for r in found if isinstance(r, Reject)]
    assert [r.id for r in rejects] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert "line 2 is not JSON" in rejects[0].reason
    assert "a JSON list, not an object" in rejects[1].reason
    assert [r.id for r in found if isinstance(r, Record)] == ["a.jsonl:0", "a.jsonl:4"]


def test_folder_is_read_in_order_and_named_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "x.txt").write_text("hello")
    (tmp_path / "in" / "notes.md").write_text("not read")
    pq.write_table(pa.table({"text": ["p", "q"]}), tmp_path / "in" / "a.parquet")
    found = read(tmp_path / "in")
    assert [r.id for r in found] == ["a.parquet:0", "a.parquet:1", "b/x.txt:0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.jsonl.zst", b"not zstd", "cannot be read"),
        ("a.pdf", b"%PDF", "cannot read this kind of file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoftshardsError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_cut_off_zstd_is_an_error_not_a_short_corpus(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(50_000))
    whole = zstandard.ZstdCompressor().compress(lines)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SoftshardsError, match=r"a\.jsonl\.zst"):
        read(tmp_path / "a.jsonl.zst")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="no such file"):
        find_files([str(tmp_path / "gone.jsonl")])
    with pytest.raises(SoftshardsError, match=r"no \.jsonl"):
        find_files([str(tmp_path)])
    with pytest.raises(SoftshardsError, match="no input given"):
        find_files([])


def test_same_name_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("hello")
    with pytest.raises(SoftshardsError, match="same name"):
        find_files([str(tmp_path / "a" / "x.txt"), str(tmp_path / "b" / "x.txt")])


def test_digests_tell_a_changed_input(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("hello")
    before = file_digests(find_files([str(path)]))
    path.write_text("hellO")
    assert file_digests(find_files([str(path)])) != before
