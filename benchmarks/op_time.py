"""Time and memory of the linear + label op, against materialized logits, by its chunk budget.

    python -m benchmarks.op_time [--device cuda]

A call is forward and backward of forward KL with tail plus cross-entropy, over n positions, with a
head of V = 151,936. On a GPU it runs in float32, and in bfloat16 by autocast over float32 weights,
as `trainer train --dtype bf16` does; times are medians of CUDA events, memory is the allocator's
peak above what was there before, without the gradients of weight and hidden, which all have. Beside
it the losses of TRL and Liger (`benchmarks/peers.py`) where they are installed; they multiply by a
second, dense teacher. On a CPU sizes are small, and memory is left to `benchmarks.op_memory`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.op_memory import K, materialized
from benchmarks.peers import PEERS
from trainer.losses import cross_entropy, forward_kl
from trainer.ops import linear_label_logprobs
from trainer.ops.label_logprobs import default_chunk_bytes

GPU = {"vocab": 151_936, "widths": (1024, 2048), "n": 4096, "rounds": 7}
CPU = {"vocab": 4096, "widths": (64,), "n": 256, "rounds": 3}
BUDGETS = (64, 128, 256, 512, 1024, 2048)
"""Chunk budgets in MiB."""

Call = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = torch.device(parser.parse_args().device)
    size: dict[str, Any] = GPU if device.type == "cuda" else CPU
    print(f"forward + backward of KL + CE, V={size['vocab']:,} k={K} n={size['n']}, {device}")
    rows = [
        row
        for width in size["widths"]
        for dtype in (("fp32", "bf16") if device.type == "cuda" else ("fp32",))
        for row in measure_width(device, size, width, dtype)
    ]
    print(json.dumps({"rows": rows, "chunk_bytes": default_chunk_bytes(device), **size}))


def measure_width(
    device: torch.device, size: dict[str, Any], width: int, dtype: str
) -> list[dict[str, Any]]:
    """Measure each way to compute the loss with a head of one width."""
    torch.manual_seed(0)
    n, vocab = size["n"], size["vocab"]
    weight = torch.randn(vocab, width, device=device).mul_(width**-0.5).requires_grad_()
    hidden = torch.randn(n, width, device=device).requires_grad_()
    ids = torch.randint(vocab // K, (n, 1), device=device)
    ids = ids + torch.arange(K, device=device) * (vocab // K)
    target = torch.randint(vocab, (n,), device=device)
    teacher = torch.randn(n, K + 1, device=device).log_softmax(1)

    def run(outputs: Callable[[], tuple[Any, Any, Any]]) -> Call:
        def call() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
                logp, log_rest, target_logp = outputs()
                loss = forward_kl(teacher[:, :K], teacher[:, K], logp, log_rest)
                loss = (loss + cross_entropy(target_logp)).mean()
            loss.backward()

        return call

    def op(budget: int | None) -> Call:
        settings = {"target": target, "chunk_bytes": budget, "unique_ids": True}
        return run(lambda: linear_label_logprobs(hidden, weight, ids, **settings))

    def peer(name: str) -> Call:
        def call() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
                loss = PEERS[name](hidden, weight, hidden.detach().flip(0), target)
            loss.backward()

        return call

    calls = {f"op, {mib} MiB": op(mib * 2**20) for mib in BUDGETS}
    calls["materialized"] = run(lambda: materialized(hidden, weight, ids, target))
    calls |= {name: peer(name) for name in PEERS}
    rows = []
    for name, call in calls.items():
        try:
            seconds, peak = measure(call, device, size["rounds"], [weight, hidden])
        except (ImportError, torch.OutOfMemoryError) as error:
            print(f"  {name}: {type(error).__name__}")
            continue
        row = {"name": name, "d": width, "dtype": dtype, "seconds": seconds, "bytes": peak}
        memory = "" if peak is None else f"{peak / 2**20:10.0f} MiB"
        print(f"  d={width} {dtype} {name:18s}{seconds * 1e3:9.2f} ms{memory}", flush=True)
        rows.append(row)
    return rows


def measure(
    call: Call, device: torch.device, rounds: int, leaves: list[torch.Tensor]
) -> tuple[float, int | None]:
    """Return the median seconds of a call and, on a GPU, the bytes of its peak."""

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    clear()
    call()
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            clear()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times), None
    clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    peak = torch.cuda.max_memory_allocated() - before - gradients
    times = []
    for _ in range(rounds):
        clear()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    clear()
    return statistics.median(times), peak


if __name__ == "__main__":
    main()
