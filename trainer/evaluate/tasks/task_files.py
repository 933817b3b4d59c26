"""Tasks as `--tasks` names them: the harness's own by name, and the user's as YAML files.

A task file may come from a stranger, and the harness runs Python that it names. So it is read here:
without `--allow-task-code`, what can run code is refused, and the harness gets plain values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.fingerprint import sha256_file
from schemas.yaml_settings import READ_ERRORS, read_settings

FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""Readers of local data that run no code: `pandas` and others unpickle."""
CODE_KEYS = (
    "class",
    "custom_dataset",
    "use_prompt",
    "unsafe_code",
    "trust_remote_code",
    "custom_generate",  # `generation_kwargs` reach transformers, which runs a folder's generate.py
)
"""Keys by which a task runs Python, or reads a prompt from elsewhere."""
LONGEST_CHAIN = 16
"""Files that include one another."""

Config = dict[str, object]


class FunctionName(str):
    """The value of a `!function`: `module.function`, beside the file in `folder`."""

    folder: Path


@dataclass(frozen=True)
class TaskSpec:
    """A task, group or tag to run.

    Attributes:
        name: its name in results.
        path: its file; None for one that comes with the harness.
        digest: of the file, of those it includes, and of its data; empty without a file.
    """

    name: str
    path: Path | None = None
    digest: str = ""


def parse_tasks(given: Iterable[str], *, allow_code: bool) -> list[TaskSpec]:
    """Return the tasks that `--tasks` names, each once.

    Args:
        given: names and YAML files, separated by commas.
        allow_code: accept files that run Python.

    Raises:
        SoftshardsError: a file is missing, is no task, or runs code.
    """
    words = [word.strip() for text in given for word in text.split(",")]
    specs = []
    for word in dict.fromkeys(word for word in words if word):
        if word.endswith((".yaml", ".yml")):
            path = Path(word)
            config = read_task(path, allow_code=allow_code)
            specs.append(TaskSpec(_name(config, path), path, _digest(config)))
        else:
            specs.append(TaskSpec(word))
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SoftshardsError(f"--tasks names the task {twice!r} twice", hint="rename one of them")
    if not specs:
        raise SoftshardsError(
            "--tasks names no task", hint="give names or YAML files: --tasks arc_easy,mytask.yaml"
        )
    return specs


def read_task(path: Path, *, allow_code: bool) -> Config:
    """Return a task file with what it includes; paths of local data are absolute.

    Raises:
        SoftshardsError: it is missing, is no task, or runs code that is not allowed.
    """
    config = _with_includes(path, allow_code, LONGEST_CHAIN)
    _name(config, path)
    for part in _parts(config):
        if not allow_code:
            _refuse_code(part, path)
        _locate_data(part, path)
    return config


def code_refused(what: str, path: Path) -> SoftshardsError:
    """Return the error about a file that may run code."""
    return SoftshardsError(
        f"{what}, which may run code",
        path=path,
        hint="read the file, and give --allow-task-code if you trust it",
    )


def _with_includes(path: Path, allow_code: bool, left: int) -> Config:
    content = _read_trusted(path) if allow_code else _read_plain(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SoftshardsError("it is no task: it maps no names to values", path=path)
    config: Config = content
    included = config.pop("include", [])
    merged: Config = {}
    for name in included if isinstance(included, list) else [included]:
        if not isinstance(name, str) or left == 0:
            raise SoftshardsError("`include` must name files, in no circle", path=path)
        merged |= _with_includes(path.parent / name, allow_code, left - 1)
    return merged | config


def _read_plain(path: Path) -> object:
    try:
        has_function = b"!function" in path.read_bytes()
    except OSError:
        has_function = False
    try:
        return read_settings(path)
    except SoftshardsError as error:
        if has_function and "!function" in error.what:
            raise code_refused("it names a Python function (`!function`)", path) from error
        raise


def _read_trusted(path: Path) -> object:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> FunctionName:
        name = FunctionName(loader.construct_scalar(node))
        name.folder = path.parent.resolve()
        return name

    Loader.add_constructor("!function", function)
    try:
        content: object = yaml.load(path.read_bytes(), Loader)
    except READ_ERRORS as error:
        what = f"it cannot be read as YAML: {first_line(error)}"
        raise SoftshardsError(what, path=path, hint="correct the file") from error
    return content


def _name(config: Config, path: Path) -> str:
    name = config.get("group", config.get("task"))
    if not isinstance(name, str) or not name:
        raise SoftshardsError(
            "it is no task: it has no `task: NAME` or `group: NAME`",
            path=path,
            hint="docs/tasks.md shows one",
        )
    return name


def _parts(value: object) -> Iterator[Config]:
    """Yield a configuration and those inside it: tasks of a group, metrics, settings of data."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _refuse_code(part: Config, path: Path) -> None:
    for key in CODE_KEYS:
        if part.get(key):
            raise code_refused(f"it has the key `{key}`", path)
    settings = part.get("dataset_kwargs")
    for text in _texts(settings):
        if "://" in text or "::" in text:
            raise code_refused(f"`dataset_kwargs` names {text!r}, a URL", path)
    if part.get("hf_evaluate"):
        raise code_refused(f"the metric {part.get('metric')!r} is not of the harness", path)
    source = part.get("dataset_path")
    if isinstance(source, str) and source not in FORMATS and _is_local(source, path):
        raise code_refused(f"`dataset_path` {source!r} is none of {', '.join(FORMATS)}", path)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _is_local(source: str, path: Path) -> bool:
    """Return True for what is not a repository on the Hub: a path, a URL, another reader."""
    return (
        "/" not in source
        or source.startswith((".", "/", "~"))
        or ":" in source
        or Path(source).exists()
        or (path.parent / source).exists()
    )


def _locate_data(part: Config, path: Path) -> None:
    """Make the paths of `data_files` absolute: they are relative to the task file's folder."""
    if part.get("dataset_path") not in FORMATS:
        return
    settings = part.get("dataset_kwargs")
    files = settings.get("data_files") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not files or "data_dir" in settings:
        raise SoftshardsError(
            "its data must be named by `dataset_kwargs: data_files:`",
            path=path,
            hint="docs/tasks.md shows one",
        )
    splits = files if isinstance(files, dict) else {None: files}
    found = {split: _locate(names, path) for split, names in splits.items()}
    settings["data_files"] = found if isinstance(files, dict) else found[None]


def _locate(names: object, path: Path) -> list[str]:
    located: list[str] = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str):
            raise SoftshardsError(f"`data_files` names {name!r}, no file", path=path)
        if "://" in name:  # refused before, without --allow-task-code
            located.append(name)
            continue
        absolute = path.parent.resolve() / name
        try:
            matches = sorted(absolute.parent.glob(absolute.name)) or [absolute]
            found = all(match.is_file() for match in matches)
        except (OSError, ValueError, NotImplementedError):  # no name that a file can have
            found = False
        if not found:
            raise SoftshardsError(
                f"`data_files` names {name!r}, which is no file",
                path=path,
                hint=f"paths are relative to {path.parent.resolve()}",
            )
        located += map(str, matches)
    return located


def _digest(config: Config) -> str:
    """Return the digest of a task: its content, its data, and Python files beside its functions."""
    files: set[Path] = set()
    for part in _parts(config):
        settings = part.get("dataset_kwargs")
        if isinstance(settings, dict) and part.get("dataset_path") in FORMATS:
            found = settings["data_files"]
            lists = found.values() if isinstance(found, dict) else [found]
            files |= {Path(name) for names in lists for name in names if Path(name).is_file()}
        for value in part.values():
            if isinstance(value, FunctionName):
                files |= set(value.folder.glob("*.py"))
    digests = [sha256_file(file) for file in sorted(files)]
    plain = json.dumps(_without_folders(config), sort_keys=True, default=str)
    return hashlib.sha256(json.dumps([plain, digests]).encode()).hexdigest()


def _without_folders(value: object) -> object:
    """Return a configuration in which the paths of data are names: a moved task stays the same."""
    if isinstance(value, dict):
        return {
            str(key): None if key == "data_files" else _without_folders(part)
            for key, part in value.items()
        }
    return [_without_folders(part) for part in value] if isinstance(value, list) else value
