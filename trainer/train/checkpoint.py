"""Checkpoints that are wholly there or not at all, and that say what run they belong to."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.atomic import TMP_PREFIX, fsync, write_atomic
from schemas.os_errors import full_disk_explained

CHECKPOINTS = "checkpoints"
META = "meta.json"
CHECKPOINT_VERSION = 1


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success fsync its files and rename it to `final`.

    An older `final` is replaced. A crash leaves the old folder, the new one, or (for the instant
    between two renames) none, but never a part of one.

    Raises:
        SoftshardsError: the disk is full.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    tmp = final.with_name(f"{TMP_PREFIX}{final.name}")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        with full_disk_explained(final.name, final.parent):
            yield tmp
            for path in [*tmp.rglob("*"), tmp]:
                fsync(path)
        if final.exists():
            old = final.with_name(f"{TMP_PREFIX}old-{final.name}")
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
            tmp.replace(final)
            shutil.rmtree(old)
        else:
            tmp.replace(final)
        fsync(final.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def save_checkpoint(
    out: Path, step: int, *, meta: dict[str, Any], states: dict[str, Any], keep: int
) -> Path:
    """Write checkpoint `step` and delete all but the newest `keep`.

    Args:
        out: the run's folder.
        meta: JSON-able facts: what the run is, and where it stands.
        states: file stem -> object for `torch.save`.
    """
    final = out / CHECKPOINTS / step_name(step)
    with atomic_directory(final) as tmp:
        for name, state in states.items():
            with (tmp / f"{name}.pt").open("wb") as stream:  # a full disk is then an OSError within
                torch.save(state, stream)
        sizes = {path.name: path.stat().st_size for path in sorted(tmp.glob("*.pt"))}
        content = {"version": CHECKPOINT_VERSION, "step": step, "files": sizes, **meta}
        (tmp / META).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for old in sorted((out / CHECKPOINTS).glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(out: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is complete, with its facts."""
    for path in sorted((out / CHECKPOINTS).glob("step-*"), reverse=True):
        if found := read_checkpoint(path):
            return found
    return None


def read_checkpoint(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """A checkpoint with its facts, or None where it is not complete."""
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        sizes = {name: (path / name).stat().st_size for name in meta["files"]}
    except (OSError, ValueError, KeyError):
        return None
    whole = sizes == meta["files"] and meta["version"] == CHECKPOINT_VERSION
    return (path, meta) if whole else None


def forget_later(out: Path, step: int) -> None:
    """Delete checkpoints past `step`: what follows makes them again, in this order."""
    for path in (out / CHECKPOINTS).glob("step-*"):
        if path.name > step_name(step):
            shutil.rmtree(path)


def step_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def load_state(checkpoint: Path, name: str) -> Any:
    """One of the states that `save_checkpoint` was given, on the CPU."""
    return torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True)


def rng_state() -> dict[str, Any]:
    """State of the random generators that a model might draw from (dropout)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object to a log."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def truncate_log(path: Path, step: int) -> None:
    """Drop what a log says about steps after `step`, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    write_atomic(path, "".join(f"{line}\n" for line in kept))
