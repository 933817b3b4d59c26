"""Reading by several ranks: bytes per rank, and time, shared and not shared.

    python -m benchmarks.shared_reading LABELS [--ranks 1 2 4] [--epochs 2] [--seconds-per-pack 0]

Each rank is a process that takes its packs and makes batches of them. `shared` exchanges rows over
gloo; `whole` is what each rank did before: read every window. Bytes are those of row groups read.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch.distributed as dist
import torch.multiprocessing as mp

from schemas import LabelSet, open_label_set
from schemas.row_group import RowGroup
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.data.exchange import open_exchange


def read_packs(
    rank: int, world: int, settings: argparse.Namespace, shared: bool, store: str
) -> None:
    """Walk the packs of a rank, and write its figures beside the store."""
    read = 0
    original = LabelSet.read_row_group

    def counting(self: LabelSet, group: RowGroup, *args: Any, **more: Any) -> Any:
        nonlocal read
        read += group.bytes.stop - group.bytes.start
        return original(self, group, *args, **more)

    LabelSet.read_row_group = counting  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    dataset = LabelDataset(
        open_label_set(settings.labels),
        pack_tokens=settings.pack_tokens,
        window=settings.window,
        epochs=settings.epochs,
        rank=rank,
        world_size=world,
        exchange=open_exchange() if shared else None,
    )
    dist.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    labels = 0
    for pack in dataset:
        labels += len(collate(pack, attention="documents").targets)
        time.sleep(settings.seconds_per_pack)
    figures = {
        "bytes": read,
        "labels": labels,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
    Path(f"{store}-{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def measure(settings: argparse.Namespace, world: int, shared: bool) -> dict[str, float]:
    """Return the figures of the rank that read most, and the processor time of all."""
    with TemporaryDirectory() as folder:
        store = f"{folder}/store"
        mp.spawn(read_packs, (world, settings, shared, store), nprocs=world)  # type: ignore[no-untyped-call]
        ranks = [json.loads(Path(f"{store}-{rank}.json").read_text()) for rank in range(world)]
    return {
        "bytes_of_a_rank": max(rank["bytes"] for rank in ranks),
        "labels": sum(rank["labels"] for rank in ranks),
        "seconds": round(max(rank["seconds"] for rank in ranks), 3),
        "cpu_seconds": round(sum(rank["cpu_seconds"] for rank in ranks), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--pack-tokens", type=int, default=2048)
    parser.add_argument("--seconds-per-pack", type=float, default=0.0, help="a step's time")
    parser.add_argument("--repeats", type=int, default=1)
    settings = parser.parse_args()
    groups = open_label_set(settings.labels).row_groups
    sizes = [group.bytes.stop - group.bytes.start for group in groups]
    total, largest = settings.epochs * sum(sizes), max(sizes)
    result: dict[str, Any] = {"bytes": total, "largest_row_group": largest}
    for world in settings.ranks:
        best: dict[str, dict[str, float]] = {}
        for _ in range(settings.repeats):  # in turns, so that slow phases of the machine hit both
            for name in ("whole", "shared") if world > 1 else ("whole",):
                found = measure(settings, world, name == "shared")
                if name not in best or found["cpu_seconds"] < best[name]["cpu_seconds"]:
                    best[name] = found
                print(world, name, json.dumps(found), flush=True)
        if world > 1:
            shared, whole = best["shared"], best["whole"]
            assert shared["bytes_of_a_rank"] <= total / world + largest
            best["shared / whole"] = {
                name: round(shared[name] / whole[name], 3)
                for name in ("bytes_of_a_rank", "seconds", "cpu_seconds")
            }
        result[str(world)] = best
    print(json.dumps(result))


if __name__ == "__main__":
    main()
