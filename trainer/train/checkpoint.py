"""Checkpoints, complete or absent, each with the facts of the run that it belongs to."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from schemas.atomic import atomic_directory
from schemas.errors import SoftshardsError
from trainer.record import Record
from trainer.run_files import CHECKPOINTS, META, checkpoint_folders, checkpoint_name
from trainer.train.run_record import Facts, HeldOutRecord

CHECKPOINT_VERSION = 1


class CheckpointMeta(Record):
    """meta.json of a checkpoint: the run, and its state apart from tensors.

    Attributes:
        files: size of each file of tensors, in bytes.
        facts: all that decides what the run learns.
        reader: state of the reader (`ReaderState.to_dict`).
        seconds: spent in steps so far.
        evals: the held-out measurements so far.
    """

    version: int = CHECKPOINT_VERSION
    step: int
    files: dict[str, int] = Field(default_factory=dict)
    facts: Facts
    reader: dict[str, int]
    total_steps: int
    tokens: int
    seconds: float
    evals: list[HeldOutRecord]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    meta: CheckpointMeta

    def load(self, name: str) -> Any:
        """Return one of the states that `save_checkpoint` was given, on the CPU."""
        return torch.load(self.path / f"{name}.pt", map_location="cpu", weights_only=True)


def save_checkpoint(
    out: Path, meta: CheckpointMeta, states: Mapping[str, object], *, keep: int
) -> None:
    """Write a checkpoint and delete all but the newest `keep`.

    Args:
        out: the run's folder.
        meta: the run and its state; `files` is filled in.
        states: file stem -> object for `torch.save`.
        keep: number of checkpoints to keep.
    """
    with atomic_directory(out / CHECKPOINTS / checkpoint_name(meta.step)) as tmp:
        for name, state in states.items():
            # With a stream of our own, a full disk is an OSError.
            with (tmp / f"{name}.pt").open("wb") as stream:
                torch.save(state, stream)
        sizes = {path.name: path.stat().st_size for path in sorted(tmp.glob("*.pt"))}
        text = meta.model_copy(update={"files": sizes}).to_json()
        (tmp / META).write_text(text, encoding="utf-8")
    for old in checkpoint_folders(out)[:-keep]:
        shutil.rmtree(old)


def newest_checkpoint(out: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = (read_checkpoint(path) for path in reversed(checkpoint_folders(out)))
    return next((checkpoint for checkpoint in found if checkpoint), None)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return a checkpoint, or None if it is incomplete."""
    try:
        meta = CheckpointMeta.read(path / META, "a checkpoint")
        sizes = {name: (path / name).stat().st_size for name in meta.files}
    except (OSError, SoftshardsError):
        return None
    is_complete = sizes == meta.files and meta.version == CHECKPOINT_VERSION
    return Checkpoint(path, meta) if is_complete else None


def delete_later_checkpoints(out: Path, step: int) -> None:
    """Delete the checkpoints past `step`: a run that resumes there makes them again."""
    for path in checkpoint_folders(out):
        if path.name > checkpoint_name(step):
            shutil.rmtree(path)


def rng_state() -> dict[str, Any]:
    """Return the state of the random generators that a model may draw from (dropout)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Set the random generators to what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
