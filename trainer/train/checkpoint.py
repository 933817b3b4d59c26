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

from schemas.atomic import atomic_directory
from schemas.errors import SoftshardsError
from trainer.file_digests import check_digests, digest_files
from trainer.record import Record
from trainer.run_files import CHECKPOINTS, DIGESTS, META, checkpoint_folders, checkpoint_name
from trainer.train.checkpoint_meta import CHECKPOINT_VERSION, CheckpointMeta


class CheckpointDigests(Record):
    """digests.json of a checkpoint: the SHA-256 of each of its other files."""

    files: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        is_proved: its files have the digests they were written with; older ones have none.
    """

    path: Path
    meta: CheckpointMeta
    is_proved: bool

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
        CheckpointDigests(files=digest_files(tmp)).write(tmp / DIGESTS)
    for old in checkpoint_folders(out)[:-keep]:
        shutil.rmtree(old)


def newest_checkpoint(out: Path) -> tuple[Checkpoint | None, list[SoftshardsError]]:
    """Return the newest complete checkpoint of a run, and the reasons against those after it.

    Raises:
        SoftshardsError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[SoftshardsError] = []
    for path in reversed(checkpoint_folders(out)):
        try:
            return read_checkpoint(path), damaged
        except SoftshardsError as error:
            damaged.append(error)
    if damaged:
        raise SoftshardsError(
            "no checkpoint here can be resumed from:"
            + "".join(f"\n  {error}" for error in damaged),
            path=out,
            hint=f"delete {out / CHECKPOINTS} to train from the start, or give another --out",
        )
    return None, []


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, its files checked against their digests.

    Raises:
        SoftshardsError: it is incomplete, damaged or of another version; the message names a file.
    """
    meta = CheckpointMeta.read(path / META, "a checkpoint")
    if meta.version != CHECKPOINT_VERSION:
        raise SoftshardsError(
            f"the checkpoint is of version {meta.version}, this softshards reads "
            f"{CHECKPOINT_VERSION}",
            path=path,
        )
    for name, size in meta.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise SoftshardsError(f"the file has {found} bytes instead of {size}", path=path / name)
    is_proved = (path / DIGESTS).exists()
    if is_proved:
        digests = CheckpointDigests.read(path / DIGESTS, "the digests of a checkpoint")
        check_digests(path, digests.files)
    return Checkpoint(path, meta, is_proved)


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
