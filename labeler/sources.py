"""Input files to records. A bad record becomes a reject; only a bad file is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from schemas import SoftshardsError
from schemas.fingerprint import sha256_file

ZSTD_BLOCK = 1 << 18
SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet", ".txt")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One input record: its default id (`relative path:number`), its file, and its columns.

    Where the input is a label set, `parent_id` is the key of the row that the record was.
    """

    id: str
    source: str
    columns: dict[str, Any]
    parent_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """What could not be labeled, and why; ends up in `journal/*.rejects.parquet`."""

    id: str
    source: str | None
    reason: str
    chunk: int | None = None
    sample: int | None = None


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to read and the name by which its records are known."""

    path: Path
    name: str


def find_files(inputs: Sequence[str]) -> list[SourceFile]:
    """The files behind `inputs`, sorted; folders are searched through.

    Raises:
        SoftshardsError: nothing is there, or a file's kind is unknown.
    """
    files: list[SourceFile] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p))
            if not found:
                raise SoftshardsError(f"no {', '.join(SUFFIXES)} in this folder", path=path)
            files += [SourceFile(path=p, name=p.relative_to(path).as_posix()) for p in found]
        elif not path.exists():
            raise SoftshardsError("no such file or folder", path=path, mend="check the path")
        elif not _suffix(path):
            raise SoftshardsError(
                f"cannot read this kind of file; known are {', '.join(SUFFIXES)}", path=path
            )
        else:
            files.append(SourceFile(path=path, name=path.name))
    if not files:
        raise SoftshardsError(
            "no input given", mend="name files or folders: `labeler label corpus.jsonl ...`"
        )
    names = [file.name for file in files]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SoftshardsError(
            f"two inputs have the same name, so their records would: {sorted(twice)[0]}",
            mend="give the folder above them instead, so that their relative paths differ",
        )
    return files


def file_digests(files: Sequence[SourceFile]) -> dict[str, str]:
    """SHA-256 of each input file by name: what a resumed run compares."""
    return {file.name: sha256_file(file.path) for file in files}


def read_records(file: SourceFile) -> Iterator[Record | Reject]:
    """Read one file, record by record, in order and with bounded memory.

    Raises:
        SoftshardsError: the file as a whole cannot be read.
    """
    suffix = _suffix(file.path)
    try:
        if suffix == ".txt":
            yield _whole_text(file)
        elif suffix == ".parquet":
            yield from _parquet(file)
        else:
            yield from _json_lines(file)
    except (OSError, zstandard.ZstdError, pa.ArrowException) as error:
        raise SoftshardsError(
            f"the file cannot be read: {error}", path=file.path, mend="is it complete?"
        ) from error


def _suffix(path: Path) -> str | None:
    return next((s for s in sorted(SUFFIXES, key=len)[::-1] if path.name.endswith(s)), None)


def _whole_text(file: SourceFile) -> Record | Reject:
    try:
        text = file.path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return Reject(id=f"{file.name}:0", source=file.name, reason=f"not UTF-8: {error}")
    return Record(id=f"{file.name}:0", source=file.name, columns={"text": text})


def _json_lines(file: SourceFile) -> Iterator[Record | Reject]:
    with file.path.open("rb") as raw:
        lines = _zstd_lines(raw) if file.path.name.endswith(".zst") else raw
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            name = f"{file.name}:{number}"
            try:
                columns = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                reason = f"line {number + 1} is not JSON: {error}"
                yield Reject(id=name, source=file.name, reason=reason)
                continue
            if isinstance(columns, dict):
                yield Record(id=name, source=file.name, columns=columns)
            else:
                reason = f"line {number + 1} is a JSON {type(columns).__name__}, not an object"
                yield Reject(id=name, source=file.name, reason=reason)


def _zstd_lines(raw: BinaryIO) -> Iterator[bytes]:
    """Lines of a zstd stream of one or more frames, a block at a time.

    Raises:
        zstandard.ZstdError: the stream is damaged, or ends inside a frame. (The library's own
            stream reader takes such an end for the end of the data.)
    """
    frame, rest = None, b""
    while block := raw.read(ZSTD_BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(block)).split(b"\n")
            yield from lines
            block = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise zstandard.ZstdError("the file ends inside a zstd frame: it was cut off")
    if rest:
        yield rest


def _parquet(file: SourceFile) -> Iterator[Record]:
    number = 0
    for batch in pq.ParquetFile(file.path).iter_batches(batch_size=1024):
        for columns in batch.to_pylist():
            yield Record(id=f"{file.name}:{number}", source=file.name, columns=columns)
            number += 1
