"""Files as they are found: suffixes, packings, padding, byte order marks, and what is skipped."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from labeler.labeling.inputs.file_formats import suffix_of
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.packed_stream import LARGEST_WINDOW
from labeler.labeling.inputs.read_records import Record, Reject, read_records
from schemas import SoftshardsError

LINES = b'{"text":"one"}\n{"text":"two"}\n'
TEXTS = ["one", "two"]


def read(path: Path) -> list[Record | Reject]:
    return [item for source in find_inputs([str(path)]) for item in read_records(source)]


def texts(path: Path) -> list[object]:
    return [item.columns["text"] for item in read(path) if isinstance(item, Record)]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.JSONL", ".jsonl"),
        ("a.ndjson", ".jsonl"),
        ("a.NDJSON.GZ", ".jsonl.gz"),
        ("a.Csv", ".csv"),
        ("a.PARQUET", ".parquet"),
        ("a.json.bz2", ".json.bz2"),
        ("a.txt.XZ", ".txt.xz"),
        ("a.ndjson/b", None),
        ("a.jsonl~", None),
        ("a.jsonl.lz4", None),
        ("jsonl", None),
        ("a.parquet.gz", None),
    ],
)
def test_suffixes(name: str, suffix: str | None) -> None:
    assert suffix_of(name) == suffix


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.JSONL", bytes),
        ("a.ndjson", bytes),
        ("a.NdJson.bz2", bz2.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.XZ", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),  # the older .lzma
        ("a.JSONL.Gz", gzip.compress),
    ],
)
def test_files_are_read_under_any_of_their_names(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(LINES))
    assert texts(tmp_path / name) == TEXTS
    assert [item.id for item in read(tmp_path)] == [f"{name}:0", f"{name}:1"]


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("packing", PACKS)
@pytest.mark.parametrize("padding", [1, 512, 200_000])
def test_frames_may_be_joined_and_padded(tmp_path: Path, packing: str, padding: int) -> None:
    path, pack, zeros = tmp_path / f"a.jsonl.{packing}", PACKS[packing], bytes(padding)
    path.write_bytes(pack(LINES[:7]) + pack(b"") + zeros + pack(LINES[7:]) + zeros)
    assert texts(path) == TEXTS


@pytest.mark.parametrize("packing", PACKS)
def test_truncated_streams_are_errors(tmp_path: Path, packing: str) -> None:
    path, packed = tmp_path / f"a.jsonl.{packing}", PACKS[packing](LINES)
    for before in (b"", packed, packed + bytes(3)):
        for cut in range(1, len(packed)):
            path.write_bytes(before + packed[:cut])
            with pytest.raises(SoftshardsError, match=r"a\.jsonl.*cannot be read"):
                read(path)


@pytest.mark.parametrize("packing", PACKS)
@pytest.mark.parametrize("after", [b"garbage", b"\0\0garbage"])
def test_other_bytes_after_a_frame_are_an_error(tmp_path: Path, packing: str, after: bytes) -> None:
    path = tmp_path / f"a.jsonl.{packing}"
    path.write_bytes(PACKS[packing](LINES) + after)
    with pytest.raises(SoftshardsError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_flipped_bytes_are_an_error(tmp_path: Path, packing: str) -> None:
    packed = bytearray(PACKS[packing](LINES))
    packed[-6] ^= 1  # in the checksum or the index
    (tmp_path / f"a.jsonl.{packing}").write_bytes(packed)
    with pytest.raises(SoftshardsError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("log", [10, 27, 28, 31])
def test_windows_of_zstd(tmp_path: Path, log: int) -> None:
    window = bytes([(log - 10) << 3])
    raw = (len(LINES) << 3 | 1).to_bytes(3, "little") + LINES  # one last block, not compressed
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + window + raw)
    assert 1 << log <= LARGEST_WINDOW
    assert texts(tmp_path / "a.jsonl.zst") == TEXTS


def test_a_window_beyond_what_zstd_supports_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(9))
    with pytest.raises(SoftshardsError, match="too much memory"):
        read(tmp_path)


def test_zstd_frames_that_are_to_be_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0pzst"
    frames = [zstandard.compress(LINES[:9]), zstandard.compress(LINES[9:])]
    (tmp_path / "a.jsonl.zst").write_bytes(skipped + frames[0] + skipped + frames[1])
    assert texts(tmp_path) == TEXTS


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["bz2", "xz"])
def test_a_tiny_file_of_many_bytes_does_not_fill_the_memory(tmp_path: Path, packing: str) -> None:
    many = b'{"text":"x"}\n' * 2_000_000
    (tmp_path / f"a.jsonl.{packing}").write_bytes(PACKS[packing](many))
    (source,) = find_inputs([str(tmp_path / f"a.jsonl.{packing}")])
    records = read_records(source)
    tracemalloc.start()
    assert sum(1 for _, _ in zip(range(30_000), records)) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(many) / 2  # the dictionary of xz is 8 MB


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_wide_text_is_named(tmp_path: Path, encoding: str, name: str) -> None:
    content = ("text\none\n" if "csv" in name else LINES.decode()).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
    expected = f"not UTF-8 but UTF-{encoding[4:6]}; convert it with `iconv"
    with pytest.raises(SoftshardsError, match=expected):
        read(tmp_path / name)


def test_wide_text_document_is_a_reject_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-16")
    (tmp_path / "b.txt").write_text("two", encoding="utf-8-sig")
    bad, good = read(tmp_path)
    assert isinstance(bad, Reject)
    assert bad.reason == "the text is not UTF-8 but UTF-16"
    assert isinstance(good, Record)
    assert good.columns == {"text": "two"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path, name: str) -> None:
    content = b"text\none\ntwo\n" if name == "a.csv" else LINES
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert texts(tmp_path / name) == TEXTS


def test_what_a_folder_leaves_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    folder = tmp_path / "in"
    (folder / "a.jsonl").write_bytes(LINES)
    for name in ("README", "b.jsonl.lz4", "deep/c.pdf", "d.view.json", ".hidden", "deep/.x"):
        (folder / name).write_bytes(b"")
    (folder / "link").symlink_to(tmp_path)
    assert texts(folder) == TEXTS
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{folder}: 5 entries are skipped: " in message
    for name in ("README", "b.jsonl.lz4", "deep/c.pdf", "d.view.json (a view)", "link (a link to"):
        assert name in message
    assert "hidden" not in message
    for number in range(7):
        (folder / f"x{number}.md").write_bytes(b"")
    assert texts(folder) == TEXTS
    message = capsys.readouterr().err
    assert "12 entries are skipped" in message
    assert message.endswith(", ...\n")
    assert "x3.md" not in message


def test_a_folder_read_whole_is_read_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1.jsonl", "2.JSONL", "3.ndjson"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "4.jsonl.bz2").write_bytes(bz2.compress(LINES))
    assert texts(tmp_path) == TEXTS * 4
    assert capsys.readouterr().err == ""
