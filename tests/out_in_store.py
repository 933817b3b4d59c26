"""With `pytest --out-in-store`, every folder that the labeler writes into is a copy of a store's.

The tests go on to name folders, look into them and tamper with them. Before a set is opened for
writing, what changed in its folder goes to the S3 service; the labeler writes there. Each file that
it sends is written into the folder, too, and once the process is done with the set, or has been
killed, the folder is made equal to the store. All requests pass through the faulty proxy.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.writing import set_place
from labeler.labeling.writing.set_place import SetPlace
from schemas.atomic import TMP_PREFIX
from schemas.cache_folder import staging_folder
from schemas.remote import is_url
from tests.faulty_store import FAULTS, Faults, faulty_store
from tests.fork_server import Command
from tests.objects import BUCKET, bucket

STATES = "SOFTSHARDS_TEST_OUT_IN_STORE"
"""Environment variable: folder with the state of each mirrored folder after it was last equal."""
WRITERS = (
    "labeler.labeling.cluster.teacher_actor",
    "labeler.labeling.runs.label_run",
    "labeler.labelsets.derive.convert",
    "labeler.labelsets.derive.recode",
    "labeler.labelsets.exchange.import_set",
    "labeler.labelsets.repair.repair",
)
RATE = 0.01
"""Probability of each kind of fault, per request."""
real_place = set_place.open_place
real_folder = LabelConfig.folder
real_await = Command._await


@contextmanager
def out_in_store(states: Path) -> Iterator[Faults]:
    """Mirror folders in this process and in those that it starts."""
    faults = Faults(dict.fromkeys(FAULTS, RATE), dice=random.Random(11))
    with faulty_store(faults), pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATES, str(states))
        install(patch)
        patch.setattr(Command, "_await", _awaited)
        yield faults


def install(patch: pytest.MonkeyPatch) -> None:
    """Replace the labeler's way to open a folder for writing."""
    for name in WRITERS:
        module = importlib.import_module(name)
        if hasattr(module, "open_place"):
            patch.setattr(module, "open_place", mirrored_place)
    patch.setattr(set_place, "open_place", mirrored_place)
    patch.setattr(LabelConfig, "folder", property(_folder))


@contextmanager
def mirrored_place(
    out: Path | str, *, writer: str = "0-of-1", options: dict[str, object] | None = None
) -> Iterator[SetPlace]:
    """Open the place in the store that stands for a folder."""
    folder = Path(out)
    if is_url(out) or (folder.exists() and not folder.is_dir()) or _links(folder):
        with real_place(out, writer=writer, options=options) as place:
            yield place
        return
    url, mark = _url(folder), _states() / f"{_name(folder)}.{os.getpid()}.open"
    with _lock(folder):
        _send_changes(folder)
        mark.write_text(str(folder))
    try:
        with real_place(url, writer=writer, options=options) as place:
            _write_what_is_sent(place, folder)
            yield place
    finally:
        _copy_back(folder)
        mark.unlink()


def _awaited(command: Command, timeout: float | None) -> int | None:
    """Wait for a command; of one that was killed, bring the folders to the state of the store."""
    running = command.returncode is None
    code = real_await(command, timeout)
    if running and code is not None:
        for mark in _states().glob(f"*.{command.pid}.open"):
            _copy_back(Path(mark.read_text()))
            mark.unlink()
    return code


def _send_changes(folder: Path) -> None:
    """Bring the store to the state of the folder, which a test may have changed."""
    store, url, before, now = bucket(), _url(folder), _known(folder), _state(folder)
    for name in [name for name in before if name not in now and store.exists(f"{url}/{name}")]:
        store.rm_file(f"{url}/{name}")
    for name in [name for name in now if now[name] != before.get(name)]:
        store.put_file(str(folder / name), f"{url}/{name}")
    _remember(folder, now)


def _write_what_is_sent(place: SetPlace, folder: Path) -> None:
    """Write each file into the folder as soon as the store has it."""
    send = place._send

    def sending(name: str) -> None:
        data = (place.folder / name).read_bytes()
        with _lock(folder):
            send(name)
            _write(folder / name, data)
            _remember(folder, _known(folder) | {name: _stamp(folder / name)})

    place._send = sending  # type: ignore[method-assign]


def _copy_back(folder: Path) -> None:
    """Bring the folder to the state of the store, which has no temporary files."""
    store = bucket()
    with _lock(folder):
        for path in folder.rglob(f"{TMP_PREFIX}*"):
            path.unlink()
        stored = {path.split("/", 2)[2]: path for path in store.find(_url(folder))}
        stored = {name: path for name, path in stored.items() if not name.startswith(".lock")}
        for name in [name for name in _state(folder) if name not in stored]:
            (folder / name).unlink()
        for name, path in stored.items():  # bucket/set/name
            data = store.cat_file(path)
            if not (folder / name).is_file() or (folder / name).read_bytes() != data:
                _write(folder / name, data)
        _remember(folder, _state(folder))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = _states() / f"{os.getpid()}.{threading.get_ident()}"
    tmp.write_bytes(data)
    tmp.replace(path)


def _states() -> Path:
    return Path(os.environ[STATES])


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(_states() / f"{_name(folder)}.lock")


def _known(folder: Path) -> dict[str, list[int]]:
    """Return the state of the folder when it was last equal to the store."""
    path = _states() / f"{_name(folder)}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _remember(folder: Path, state: dict[str, list[int]]) -> None:
    (_states() / f"{_name(folder)}.json").write_text(json.dumps(state))


def _folder(config: LabelConfig) -> Path:
    if is_url(config.out) or _links(Path(config.out)):
        return real_folder.fget(config)  # type: ignore[attr-defined]
    return staging_folder(_url(Path(config.out)), config.writer)


def _links(folder: Path) -> bool:
    return folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*"))


def _name(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _url(folder: Path) -> str:
    return f"{BUCKET}/{_name(folder)}"


def _state(folder: Path) -> dict[str, list[int]]:
    """Return size and time of each file, without locks and what killed writers left."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".lock") and TMP_PREFIX not in name:
            found[name] = _stamp(path)
    return found


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]
