"""Fuzzers of what stands between a set and its reader: an object store, the cache, the Hub.

Whatever they send, rows that are read are those of the set: hashes cover every byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import fsspec
import huggingface_hub.constants
import pyarrow as pa
import tenacity.nap
from fsspec.implementations.memory import MemoryFileSystem

from labeler.labelsets.hub.hub_repo import HubRepo
from labeler.labelsets.hub.pull import pull
from schemas import LabelSet, SoftshardsError, open_label_set, scan
from schemas.cache_folder import CACHE
from schemas.hidden_part import state_columns
from tests.hostile.fuzz import Target
from tests.hostile.fuzz_sets import SETS, findings, make_sets, mutate_bytes, mutate_json, quiet
from tests.hostile.sealed import files_of, trained_on
from tests.labeler.hub import Headers, Hub, Repo, hub
from tests.schemas.sets import GOLDEN
from tests.schemas.state_sets import LAYERS

FOLDER, REPO = "/sets", "me/labels"
COLUMNS = ("id", "input_ids", "topk_ids", "topk_logprobs", "tail_logprob")


class HostileStore(MemoryFileSystem):  # type: ignore[misc]
    """A store that answers some requests with other bytes, other sizes, or an error."""

    protocol = "hostile"
    rng: ClassVar[Random] = Random()
    share: ClassVar[float] = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("hostile://", "memory://")))

    def _is_struck(self) -> bool:
        return self.rng.random() < self.share

    def cat_file(self, path: str, **place: Any) -> Any:
        data = super().cat_file(path, **place)
        return _altered(data, self.rng) if self._is_struck() else data

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        file = super()._open(path, mode, **settings)
        if self._is_struck():
            return self._other(_altered(file.getvalue(), self.rng))
        return file

    def _other(self, data: bytes) -> Any:
        path = f"/other/{self.rng.random()}"
        self.pipe_file(path, data)
        return super()._open(path, "rb")

    def info(self, path: str, **settings: Any) -> Any:
        facts = super().info(path, **settings)
        if facts["type"] == "file" and self._is_struck():
            return facts | {"size": self.rng.choice((0, 1, facts["size"] - 1, 2**40, None))}
        return facts


def _altered(data: bytes, rng: Random) -> bytes:
    """Return another answer: cut off, too long, other bytes, none; or raise what stores raise."""
    choice = rng.randrange(7)
    if choice == 0:
        return data[: rng.randrange(len(data) + 1)]
    if choice == 1:
        return data + data[:100] * rng.choice((1, 1000))
    if choice == 2:
        return data[rng.randrange(len(data) + 1) :]
    if choice == 3:
        return b"<html>busy</html>"
    if choice == 4:
        error = rng.choice((FileNotFoundError, PermissionError, ConnectionResetError, ValueError))
        raise error("the store says no")
    if choice == 5:
        raise rng.choice((TimeoutError, KeyError, AttributeError, TypeError))("unexpected")
    return mutate_bytes(data, rng)


_TRUTH: dict[str, pa.Table] = {}


def make_stores() -> None:
    """Put the sets into the store, and keep their rows to compare with."""
    make_sets()
    fsspec.register_implementation("hostile", HostileStore, clobber=True)
    tenacity.nap.time.sleep = lambda _: None  # the pauses between attempts
    store = HostileStore()
    for name in SETS:
        folder = Path("sets", name)
        for file in files_of(folder):
            store.pipe_file(f"{FOLDER}/{name}/{file.relative_to(folder)}", file.read_bytes())
        _TRUTH[name] = _rows(open_label_set(folder))


def _columns(labels: LabelSet) -> list[str]:
    return [*COLUMNS, *(state_columns(LAYERS) if labels.manifest.states is not None else ())]


def _rows(labels: LabelSet) -> pa.Table:
    columns = _columns(labels)
    groups = [labels.read_row_group(group, columns) for group in labels.row_groups]
    return pa.concat_tables(groups)


def _read(name: str, url: str) -> str:
    """Read a set in a store; what comes back is the set's rows, or an error."""
    try:
        found = _rows(open_label_set(url))
    except SoftshardsError:
        return "refused"
    assert found.equals(_TRUTH[name]), "other rows were read"
    return "read"


def fuzz_stores(rng: Random) -> str:
    """Read a set of a store that does not always answer as it should."""
    name = rng.choice(SETS)
    url = f"hostile:/{FOLDER}/{name}"
    os.environ[CACHE] = str(Path("cache").resolve())
    shutil.rmtree("cache", ignore_errors=True)
    HostileStore.rng, HostileStore.share = rng, rng.choice((0.02, 0.1, 0.4))
    try:
        outcome = _read(name, url)
        with contextlib.suppress(SoftshardsError), quiet():
            use = rng.choice((findings, trained_on, lambda path: scan(path).collect()))
            use(url)
    finally:
        HostileStore.share = 0.0
    return outcome


def fuzz_caches(rng: Random) -> str:
    """Change files of the cache: a set is read as if there were none."""
    name = rng.choice(SETS)
    url = f"hostile:/{FOLDER}/{name}"
    cache = Path("cache").resolve()
    os.environ[CACHE] = str(cache)
    shutil.rmtree(cache, ignore_errors=True)
    assert _read(name, url) == "read"
    files = sorted(file for file in cache.rglob("*") if file.is_file())
    contents = [file.read_bytes() for file in files]
    for at in rng.sample(range(len(files)), rng.randrange(1, len(files) + 1)):
        file, choice = files[at], rng.randrange(6)
        if choice == 0:
            file.unlink()
            file.symlink_to(rng.choice(files))
        elif choice == 1:
            file.unlink()
            file.mkdir()
        elif choice == 2:
            file.write_bytes(rng.choice(contents))
        elif choice == 3:
            file.unlink()
            os.mkfifo(file)
        elif choice == 4:
            file.write_bytes(mutate_bytes(contents[at], rng) * rng.choice((1, 1, 50)))
        else:
            file.rename(file.with_name(rng.choice(("x", "0" * 64, ".tmp-1"))))
    assert _read(name, url) == "read", "the cache is no reason to refuse"
    return "read"


_HUBS: list[Hub] = []


def _running_hub() -> Hub:
    """Return a stand-in of this process with a set in it."""
    if not _HUBS:
        context = hub()
        running = context.__enter__()  # ends with the process
        running.context = context  # type: ignore[attr-defined]
        golden = GOLDEN.with_name("format-1-states-2")  # a hash covers each of its files
        files = {f.relative_to(golden).as_posix(): f.read_bytes() for f in files_of(golden)}
        files.pop("expected.json")
        running.repos[REPO] = Repo(False, {"main": [files]})
        _HUBS.append(running)
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        time.sleep = lambda _: None  # type: ignore[assignment]
    return _HUBS[0]


def fuzz_hub(rng: Random) -> str:
    """Pull from a Hub whose answers are altered: what arrives is the set, or it is refused."""
    running = _running_hub()
    files = dict(running.repos[REPO].branches["main"][0])
    name = rng.choice(sorted(files))
    if rng.random() < 0.4:
        files[name] = mutate_bytes(files[name], rng)
    running.repos[REPO].branches["main"][1:] = [files]
    share = rng.choice((0.0, 0.1, 0.3))

    def alter(status: int, content: bytes, headers: Headers) -> tuple[int, bytes, Headers]:
        if rng.random() >= share:
            return status, content, headers
        if headers and rng.random() < 0.4:
            name = rng.choice(sorted(headers))
            value = rng.choice(("", "-1", "x", "9" * 30, "0" * 40, '"0"', None))
            others = {k: v for k, v in headers.items() if k != name}
            return status, content, others | ({} if value is None else {name: value})
        if rng.random() < 0.2:
            return rng.choice((404, 403, 500, 416, 206)), content, headers
        try:
            return status, json.dumps(mutate_json(json.loads(content), rng)).encode(), headers
        except (ValueError, RecursionError):
            return status, mutate_bytes(content, rng), headers

    running.alter = alter
    out = Path("pulled")
    shutil.rmtree(out, ignore_errors=True)
    try:
        with quiet():
            pull(out, HubRepo(name=REPO, endpoint=running.url))
    except SoftshardsError:
        return "refused"
    for file, data in running.repos[REPO].branches["main"][0].items():
        assert (out / file).read_bytes() == data, f"{file} is another file"
    return "pulled"


TARGETS = {
    "stores": Target(fuzz_stores, make_stores),
    "caches": Target(fuzz_caches, make_stores),
    "hub": Target(fuzz_hub),
}
