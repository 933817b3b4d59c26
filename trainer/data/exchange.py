"""Swap bytes between the processes of a run, and an error of one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from schemas.errors import IdentityError, LabelSetError, SoftshardsError, first_line
from trainer.data.table_bytes import Message

T = TypeVar("T")

LONGEST_SILENCE = timedelta(minutes=10)
"""Time after which a process that sends nothing is given up: twice as long as a store is waited for
(`trainer.data.wait_for_store`)."""
ALIGNMENT = 64
"""Arrow reads columns where they are, and wants them to begin at a multiple of this."""

_KINDS = {kind.__name__: kind for kind in (SoftshardsError, LabelSetError, IdentityError)}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The processes that share the rows of windows. One thread at a time may use it.

    Attributes:
        group: a process group of its own, so that a thread can use it beside the training steps.
        rank: number of this process.
        world: number of processes.
    """

    group: dist.ProcessGroup
    rank: int
    world: int

    def together(
        self, work: Callable[[], T], messages: Callable[[T], Sequence[Message]]
    ) -> tuple[T, list[memoryview]]:
        """Do a piece of work, and swap messages about it; all processes must call this.

        Args:
            work: may fail on any process, and then fails on all.
            messages: returns a message for each process, from the result of `work`.

        Returns:
            The result of `work`, and the message from each process.

        Raises:
            SoftshardsError: the error of the first process that failed, or a process is lost.
            Exception: on the process that failed, its own error.
        """
        outgoing: Sequence[Message] | Exception
        try:
            result = work()
            outgoing = messages(result)
        except Exception as error:
            outgoing = error
        incoming = self._swap(outgoing)  # raises the error, so there is a result
        return result, incoming

    def _swap(self, messages: Sequence[Message] | Exception) -> list[memoryview]:
        error = messages if isinstance(messages, Exception) else None
        parts: Sequence[Message]
        if isinstance(messages, Exception):
            parts = [_error_bytes(messages)] * self.world
        else:
            parts = messages
        sizes = [len(part) for part in parts]
        told = torch.tensor([[size, error is not None] for size in sizes], dtype=torch.int64)
        found = torch.empty_like(told)
        self._all_to_all(found, told, [1] * self.world, [1] * self.world)
        outgoing, incoming = _lay_out(sizes), _lay_out(found[:, 0].tolist())
        for part, place in zip(parts, outgoing.places, strict=True):
            place[:] = memoryview(part).cast("B")
        self._all_to_all(incoming.tensor, outgoing.tensor, incoming.rooms, outgoing.rooms)
        for rank in found[:, 1].nonzero()[:, 0].tolist():
            if rank == self.rank and error is not None:
                raise error
            raise _error_of(incoming.places[rank])
        return incoming.places

    def _all_to_all(
        self,
        incoming: torch.Tensor,
        outgoing: torch.Tensor,
        incoming_rooms: list[int],
        outgoing_rooms: list[int],
    ) -> None:
        try:
            self.group.alltoall_base(incoming, outgoing, incoming_rooms, outgoing_rooms).wait()
        except RuntimeError as error:  # gloo has no narrower one
            raise lost_process(error) from error


def open_exchange() -> Exchange | None:
    """Return an exchange among all processes, which must all call this; None for one alone.

    Raises:
        SoftshardsError: the processes cannot reach each other.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return None
    try:
        group = dist.new_group(backend="gloo", timeout=LONGEST_SILENCE)
    except RuntimeError as error:
        raise SoftshardsError(
            f"the processes cannot exchange rows over gloo: {first_line(error)}",
            hint="set GLOO_SOCKET_IFNAME to the network interface between the machines",
        ) from error
    return Exchange(group=group, rank=dist.get_rank(), world=world)


def lost_process(error: Exception) -> SoftshardsError:
    """Return the error of a process that another one does not answer."""
    return SoftshardsError(
        f"another process of this run ended, or does not answer: {first_line(error)}",
        hint="its own messages say why; the same command resumes from the last checkpoint",
    )


@dataclass(frozen=True)
class _Messages:
    """Messages in one tensor of bytes: their places in it, and the bytes from one to the next."""

    tensor: torch.Tensor
    places: list[memoryview]
    rooms: list[int]


def _lay_out(sizes: list[int]) -> _Messages:
    """Return empty messages of these sizes in bytes."""
    rooms = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    tensor = torch.zeros(sum(rooms), dtype=torch.uint8)
    content = memoryview(tensor.numpy().data)
    starts = np.cumsum([0, *rooms]).tolist()
    return _Messages(tensor, [content[a : a + size] for a, size in zip(starts, sizes)], rooms)


def _error_bytes(error: Exception) -> bytes:
    if not isinstance(error, SoftshardsError):
        error = SoftshardsError(f"{type(error).__name__}: {first_line(error)}")
    kind = next(k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS)
    path, row = (None if value is None else str(value) for value in (error.path, error.row))
    content = {"kind": kind, "what": error.what, "path": path, "row": row, "hint": error.hint}
    return json.dumps(content).encode()


def _error_of(data: memoryview) -> SoftshardsError:
    content = json.loads(bytes(data))
    kind = _KINDS[content["kind"]]
    return kind(content["what"], path=content["path"], row=content["row"], hint=content["hint"])
