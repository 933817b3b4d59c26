"""What the command line names as input, to files in the order in which to read them."""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from labeler.labeling.inputs.file_formats import KNOWN, suffix_of
from labeler.labeling.inputs.locations import is_http, is_local, named_errors, open_place, shown
from schemas import SoftshardsError
from schemas.manifest import MANIFEST, read_manifest
from schemas.plan import is_plan
from schemas.view import VIEW_SUFFIX, read_view

LABEL_SET = "label set"
STDIN = "/dev/stdin"
"""Standard input, like `-`."""
DATASET = {"dataset_info.json", "state.json"}
"""What `datasets.Dataset.save_to_disk` writes beside the data."""
SPLITS = "dataset_dict.json"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """An input to read, and the name by which its records are known.

    Attributes:
        name: relative to the folder or pattern that was given.
        kind: its suffix (`formats.suffix_of`), or LABEL_SET, also for a view of one.
        fs: the file system that it is on.
        paths: of its files there: one, but for a dataset in several.
        held: what must live as long as this does (the copy of standard input).
    """

    name: str
    kind: str
    fs: AbstractFileSystem
    paths: tuple[str, ...]
    held: Any = None


def find_files(inputs: Sequence[str]) -> list[SourceFile]:
    """The files behind paths, folders, patterns, URLs and `-`, in the order in which to read them.

    Folders are searched through, sorted by name, without hidden files, links to folders, label sets
    and views of them. A Hugging Face dataset on disk is one file for each split.

    Raises:
        SoftshardsError: nothing is there, a file's kind is unknown, or a driver is missing.
    """
    files = [file for text in inputs for file in _find(text)]
    if not files:
        raise SoftshardsError(
            "no input given", hint="name files or folders: `labeler label corpus.jsonl ...`"
        )
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise SoftshardsError(
            f"two inputs have the same name, so their records would: {twice[0]}",
            hint="give the folder above them, or a pattern: names are relative to these",
        )
    return files


def _find(text: str) -> list[SourceFile]:
    if text in ("-", STDIN):
        return [_standard_input()]
    fs, path = open_place(text)
    with named_errors(fs, text, "check the path, and that you may read it"):
        # On the web, `?` begins a query. A local file may have any name.
        fixed = re.split(r"[*\[]" if is_http(fs) else r"[*?\[]", path, maxsplit=1)[0]
        if fixed != path and not (is_local(fs) and fs.exists(path)):
            return _matches(fs, path, base=posixpath.dirname(fixed), pattern=text)
        if not fs.exists(path):
            raise SoftshardsError("no such file or folder", path=text, hint="check the path")
        if _is_folder(fs, path):
            return _folder(fs, path, name=_name(path), base=path)
        return [_file(fs, path, _name(path))]


def _standard_input() -> SourceFile:
    """JSON lines, copied to disk: their digest must be known before the first is read."""
    spool = tempfile.NamedTemporaryFile(prefix="softshards-stdin-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    fs, paths = LocalFileSystem(), (spool.name,)
    return SourceFile(name="stdin", kind=".jsonl", fs=fs, paths=paths, held=spool)


def _matches(fs: AbstractFileSystem, glob: str, *, base: str, pattern: str) -> list[SourceFile]:
    """What a pattern matches, folders searched through, named relative to its fixed part."""
    files: list[SourceFile] = []
    above = None
    for path in sorted(fs.glob(glob), key=lambda p: p.split("/")):
        name = _relative(path, base)
        if above is not None and path.startswith(above):
            continue  # `**` matches a folder and what is in it
        if "/." in f"/{name}" and "/." not in glob:
            continue  # hidden, as a shell has it
        if _is_folder(fs, path):
            above = path.rstrip("/") + "/"
            files += _folder(fs, path, name=name, base=base)
        else:
            files.append(_file(fs, path, name))
    if not files:
        raise SoftshardsError("no file matches this", path=pattern, hint="check the pattern")
    return files


def _file(fs: AbstractFileSystem, path: str, name: str) -> SourceFile:
    if name.endswith(VIEW_SUFFIX):
        return _label_set(fs, path, name)
    kind = suffix_of(name)
    if kind is None:
        raise SoftshardsError(
            "cannot read this kind of file", path=shown(fs, path), hint=f"known are {KNOWN}"
        )
    return SourceFile(name=name, kind=kind, fs=fs, paths=(path,))


def _folder(fs: AbstractFileSystem, path: str, *, name: str, base: str) -> list[SourceFile]:
    """A label set or dataset, known as `name`, or the files in a folder, relative to `base`."""
    entries = _entries(fs, path)
    if _is_label_set(entries):
        return [_label_set(fs, path, name)]
    if entries.keys() >= DATASET:
        return [_dataset(fs, path, name)]
    found = list(_search(fs, path, base))
    if not found:
        raise SoftshardsError(
            "there is no file in this folder that can be read",
            path=shown(fs, path),
            hint=f"known are {KNOWN}; name a label set itself, not the folder that it is in",
        )
    return found


def _search(fs: AbstractFileSystem, folder: str, base: str) -> Iterator[SourceFile]:
    entries = _entries(fs, folder)
    if _is_label_set(entries):  # it may be the one that is being written
        return
    if entries.keys() >= DATASET:
        yield _dataset(fs, folder, _relative(folder, base))
        return
    if SPLITS in entries:
        splits = _described(fs, folder, SPLITS, "splits")
        missing = [split for split in splits if split not in entries]
        if missing:
            what = f"the split {missing[0]!r} of this dataset is missing"
            raise SoftshardsError(what, path=shown(fs, folder), hint="save the dataset again")
        entries = {split: entries[split] for split in splits}
    for name, entry in entries.items():
        path = entry["name"]
        if entry["type"] == "directory":
            yield from _search(fs, path, base)
        elif name.endswith(VIEW_SUFFIX):  # like a label set: only where it is named
            continue
        elif suffix_of(name) and (entry["type"] == "file" or fs.isfile(path)):  # or a link to one
            yield _file(fs, path, _relative(path, base))


def _label_set(fs: AbstractFileSystem, path: str, name: str) -> SourceFile:
    if not is_local(fs):
        raise SoftshardsError(
            "a label set can only be read from a local disk",
            path=shown(fs, path),
            hint="copy the folder, and name the copy",
        )
    if name.endswith(VIEW_SUFFIX):  # of rows that are there, whether the set is finished or not
        read_view(Path(path))
    elif read_manifest(Path(path)).status != "complete":
        raise SoftshardsError(
            "the label set is not finished",
            path=path,
            hint="run the command that began it again",
        )
    return SourceFile(name=name, kind=LABEL_SET, fs=fs, paths=(path,))


def _dataset(fs: AbstractFileSystem, path: str, name: str) -> SourceFile:
    data_files = _described(fs, path, "state.json", "_data_files")
    paths = tuple(f"{path.rstrip('/')}/{file['filename']}" for file in data_files)
    return SourceFile(name=name, kind=".arrow", fs=fs, paths=paths)


def _described(fs: AbstractFileSystem, folder: str, name: str, key: str) -> list[Any]:
    """An entry of one of the JSON files that describe a dataset on disk."""
    path = f"{folder.rstrip('/')}/{name}"
    try:
        return list(json.loads(fs.cat_file(path))[key])
    except (ValueError, KeyError, TypeError) as error:
        what = f"this is no description of a dataset: {error!r}"
        raise SoftshardsError(what, path=shown(fs, path), hint="save the dataset again") from error


def _is_folder(fs: AbstractFileSystem, path: str) -> bool:
    if is_http(fs) and suffix_of(_name(path)):
        return False  # asking would fetch the file, to look for links in it
    return bool(fs.isdir(path))


def _entries(fs: AbstractFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """What is listed in a folder by name, sorted, without hidden files."""
    entries = {_name(entry["name"]): entry for entry in fs.ls(folder, detail=True)}
    return {name: entries[name] for name in sorted(entries) if not name.startswith(".")}


def _is_label_set(entries: dict[str, Any]) -> bool:
    if any(is_plan(name) for name in entries):
        return MANIFEST in entries or "journal" in entries
    return {MANIFEST, "journal", "shards"} <= entries.keys()  # derived from others: no plan


def _name(path: str) -> str:
    """The last part of a path or URL, without a query."""
    return posixpath.basename((urlsplit(path).path if "://" in path else path).rstrip("/"))


def _relative(path: str, base: str) -> str:
    relative = path.removeprefix(base).strip("/")
    return urlsplit(relative).path if "://" in path else relative
