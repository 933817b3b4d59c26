"""Several ranks in one process: threads that exchange rows over gloo, as processes do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from trainer.data.exchange import Exchange

T = TypeVar("T")
LIMIT = timedelta(minutes=5)
"""Threads that wait longer wait for each other."""


def in_ranks(world: int, work: Callable[[Exchange], T]) -> list[T | Exception]:
    """Run `work` once per rank, all at once; return what each returns or raises."""
    store = dist.HashStore()

    def run(rank: int) -> T | Exception:
        group = dist.ProcessGroupGloo(store, rank, world, LIMIT)
        try:
            return work(Exchange(group=group, rank=rank, world=world))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))
