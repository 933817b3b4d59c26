"""Find the files and label sets that the command line names, in the order in which to read them."""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TypedDict
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from labeler.console import err
from labeler.labeling.inputs.file_formats import KNOWN_SUFFIXES, suffix_of
from labeler.labeling.inputs.locations import (
    as_input_errors,
    display_path,
    is_http,
    is_local,
    open_location,
)
from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.file_names import is_plan
from schemas.json_values import parse_object
from schemas.manifest import MANIFEST
from schemas.view import VIEW_SUFFIX

STDIN = "/dev/stdin"
"""Standard input, the same as `-`."""
DATASET = {"dataset_info.json", "state.json"}
"""Files that `datasets.Dataset.save_to_disk` writes beside the data."""
SPLITS = "dataset_dict.json"
NAMED = 5
"""Skipped entries of a folder that are named."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file with records, or a dataset in several files.

    Attributes:
        name: relative to the folder or pattern that was given.
        suffix: its format (`file_formats.suffix_of`).
        fs: its file system.
        paths: its files there: one, or more for a dataset.
        stdin: the copy of standard input, which is deleted with this object.
    """

    name: str
    suffix: str
    fs: AbstractFileSystem
    paths: tuple[str, ...]
    stdin: IO[bytes] | None = None


@dataclass(frozen=True, kw_only=True)
class InputSet:
    """A label set, or a view of one, whose rows are the records.

    Attributes:
        name: relative to the folder or pattern that was given.
        labels: the opened set.
    """

    name: str
    labels: LabelSet


Input = DataFile | InputSet


class Entry(TypedDict):
    """A file or folder in fsspec's listing of a folder."""

    name: str
    type: str


def find_inputs(inputs: Sequence[str]) -> list[Input]:
    """Return the inputs behind paths, folders, patterns, URLs and `-`, in reading order.

    Folders are searched recursively, sorted by name, without hidden files, links to folders, label
    sets and views of them. What is skipped is named on standard error, hidden files excepted. A
    Hugging Face dataset on disk is one input per split.

    Raises:
        SoftshardsError: an input is missing, its format is unknown, or a driver is missing.
        LabelSetError: a label set is unfinished or damaged.
    """
    found = [each for text in inputs for each in _find(text)]
    if not found:
        raise SoftshardsError(
            "no input given", hint="name files or folders: `labeler label corpus.jsonl ...`"
        )
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise SoftshardsError(
            f"two inputs have the same name, so their records would share ids: {twice[0]}",
            hint="give the folder above them, or a pattern: names are relative to it",
        )
    return found


def _find(text: str) -> list[Input]:
    if text in ("-", STDIN):
        return [_standard_input()]
    fs, path = open_location(text)
    with as_input_errors(fs, text, "check the path, and that you may read it"):
        # On the web, `?` begins a query. A local file may have any name.
        fixed = re.split(r"[*\[]" if is_http(fs) else r"[*?\[]", path, maxsplit=1)[0]
        if fixed != path and not (is_local(fs) and fs.exists(path)):
            return _matches(fs, path, base=posixpath.dirname(fixed), pattern=text)
        if not fs.exists(path):
            raise SoftshardsError("no such file or folder", path=text, hint="check the path")
        if _is_folder(fs, path):
            return _folder(fs, path, name=_name(path), base=path)
        return [_file(fs, path, _name(path))]


def _standard_input() -> DataFile:
    """Copy JSON lines to disk: their digest must be known before the first one is read."""
    spool = tempfile.NamedTemporaryFile(prefix="softshards-stdin-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    fs, paths = LocalFileSystem(), (spool.name,)
    return DataFile(name="stdin", suffix=".jsonl", fs=fs, paths=paths, stdin=spool)


def _matches(fs: AbstractFileSystem, glob: str, *, base: str, pattern: str) -> list[Input]:
    """Return the inputs that a pattern matches, named relative to its fixed part."""
    files: list[Input] = []
    above = None
    for path in sorted(fs.glob(glob), key=lambda p: p.split("/")):
        name = _relative(path, base)
        if above is not None and path.startswith(above):
            continue  # `**` matches a folder and what is in it
        if "/." in f"/{name}" and "/." not in glob:
            continue  # hidden files, as in a shell
        if _is_folder(fs, path):
            above = path.rstrip("/") + "/"
            files += _folder(fs, path, name=name, base=base)
        else:
            files.append(_file(fs, path, name))
    if not files:
        raise SoftshardsError("no file matches the pattern", path=pattern, hint="check the pattern")
    return files


def _file(fs: AbstractFileSystem, path: str, name: str) -> Input:
    if name.endswith(VIEW_SUFFIX):
        return _label_set(fs, path, name)
    suffix = suffix_of(name)
    if suffix is None:
        raise SoftshardsError(
            "cannot read this kind of file",
            path=display_path(fs, path),
            hint=f"the known formats are {KNOWN_SUFFIXES}",
        )
    return DataFile(name=name, suffix=suffix, fs=fs, paths=(path,))


def _folder(fs: AbstractFileSystem, path: str, *, name: str, base: str) -> list[Input]:
    """Return a folder as label set or dataset `name`, or its files, named relative to `base`."""
    entries = _entries(fs, path)
    if _is_label_set(entries):
        return [_label_set(fs, path, name)]
    if entries.keys() >= DATASET:
        return [_dataset(fs, path, name)]
    skipped: list[str] = []
    found = list(_search(fs, path, base, skipped))
    if not found:
        raise SoftshardsError(
            "no file in this folder can be read",
            path=display_path(fs, path),
            hint=f"the known formats are {KNOWN_SUFFIXES}; "
            "name a label set itself, not the folder that it is in",
        )
    if skipped:
        _print_skipped(display_path(fs, path), skipped)
    return found


def _print_skipped(folder: str, skipped: Sequence[str]) -> None:
    names = ", ".join(skipped[:NAMED]) + (", ..." if skipped[NAMED:] else "")
    what = "1 entry is" if len(skipped) == 1 else f"{len(skipped)} entries are"
    err.print(f"{folder}: {what} skipped: {names}")


def _search(fs: AbstractFileSystem, folder: str, base: str, skipped: list[str]) -> Iterator[Input]:
    """Yield the inputs in a folder; add the names of all other entries to `skipped`."""
    entries = _entries(fs, folder)
    if _is_label_set(entries):  # it may be the one that is being written
        skipped.append(f"{_relative(folder, base)} (a label set)")
        return
    if entries.keys() >= DATASET:
        yield _dataset(fs, folder, _relative(folder, base))
        return
    if SPLITS in entries:
        splits = _plain_names(_described(fs, folder, SPLITS, "splits"), fs, folder, SPLITS)
        missing = [split for split in splits if split not in entries]
        if missing:
            what = f"the split {missing[0]!r} of this dataset is missing"
            raise SoftshardsError(
                what, path=display_path(fs, folder), hint="save the dataset again"
            )
        entries = {split: entries[split] for split in splits}
    for name, entry in entries.items():
        path = entry["name"]
        if entry["type"] == "directory":
            yield from _search(fs, path, base, skipped)
        elif name.endswith(VIEW_SUFFIX):  # like a label set: only if named itself
            skipped.append(f"{_relative(path, base)} (a view)")
        elif entry["type"] == "other" and fs.isdir(path):
            skipped.append(f"{_relative(path, base)} (a link to a folder)")
        elif suffix_of(name) and (entry["type"] == "file" or fs.isfile(path)):  # or a link
            yield _file(fs, path, _relative(path, base))
        else:
            skipped.append(_relative(path, base))


def _label_set(fs: AbstractFileSystem, path: str, name: str) -> InputSet:
    return InputSet(name=name, labels=open_label_set(display_path(fs, path)))


def _dataset(fs: AbstractFileSystem, path: str, name: str) -> DataFile:
    data_files = _described(fs, path, "state.json", "_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in data_files]
    parts = _plain_names(names, fs, path, "state.json")
    paths = tuple(f"{path.rstrip('/')}/{part}" for part in parts)
    return DataFile(name=name, suffix=".arrow", fs=fs, paths=paths)


def _described(fs: AbstractFileSystem, folder: str, name: str, key: str) -> list[object]:
    """Return the list under a key of one of the JSON files that describe a dataset on disk."""
    path = f"{folder.rstrip('/')}/{name}"
    try:
        found = parse_object(fs.cat_file(path))[key]
    except (ValueError, KeyError) as error:
        raise _not_described(f"{error!r}", fs, path) from error
    if not isinstance(found, list):
        raise _not_described(f"its {key} are no list", fs, path)
    return found


def _plain_names(found: list[object], fs: AbstractFileSystem, folder: str, name: str) -> list[str]:
    """Return names that lead nowhere but into a dataset's folder."""
    names = [each for each in found if isinstance(each, str) and each.strip("./\\")]
    if len(names) < len(found) or any(re.search(r"[/\\\0]", each) for each in names):
        path = f"{folder.rstrip('/')}/{name}"
        raise _not_described("a name in it is not that of a file beside it", fs, path)
    return names


def _not_described(why: str, fs: AbstractFileSystem, path: str) -> SoftshardsError:
    return SoftshardsError(
        f"this is not a description of a dataset: {why}",
        path=display_path(fs, path),
        hint="save the dataset again",
    )


def _is_folder(fs: AbstractFileSystem, path: str) -> bool:
    if is_http(fs) and suffix_of(_name(path)):
        return False  # isdir would fetch the file and look for links in it
    return bool(fs.isdir(path))


def _entries(fs: AbstractFileSystem, folder: str) -> dict[str, Entry]:
    """List a folder by name, sorted, without hidden files."""
    entries = {_name(entry["name"]): entry for entry in fs.ls(folder, detail=True)}
    return {name: entries[name] for name in sorted(entries) if not name.startswith(".")}


def _is_label_set(entries: Collection[str]) -> bool:
    if any(is_plan(name) for name in entries):
        return MANIFEST in entries or "journal" in entries
    return {MANIFEST, "journal", "shards"} <= set(entries)  # derived from others: no plan


def _name(path: str) -> str:
    """Return the last part of a path or URL, without a query."""
    return posixpath.basename((urlsplit(path).path if "://" in path else path).rstrip("/"))


def _relative(path: str, base: str) -> str:
    relative = path.removeprefix(base).strip("/")
    return urlsplit(relative).path if "://" in path else relative
