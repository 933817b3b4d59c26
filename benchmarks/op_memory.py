"""T2: peak extra memory of the linear + label op against materialised logits with the same loss.

    python -m benchmarks.op_memory [--full]

Memory is peak resident set (VmHWM, Linux) of a fresh process for each measurement, above what was
resident just before: unlike a profiler of tensor allocations it also sees what kernels and the BLAS
library take inside, and unlike a peak in a shared process it cannot be hidden by an earlier one.
The outputs and the gradients of weight and hidden are subtracted, from both sides: the op holds all
of them at its peak, materialised logits may not, so the ratio errs against the op.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from trainer.losses import cross_entropy, forward_kl
from trainer.ops import CHUNK_BYTES, linear_label_logprobs

VOCAB, K = 151_936, 64
DEFAULT = {"n": 1024, "d": 64}
FULL = {"n": 4096, "d": 896}  # the width of the smallest student with this vocabulary
TARGET = 1 / 20


def materialised(
    hidden: Tensor, weight: Tensor, ids: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.nn.functional.linear(hidden, weight).log_softmax(1)
    log_rest = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return log_p.gather(1, ids), log_rest, log_p.gather(1, target[:, None])[:, 0]


def step(name: str, hidden: Tensor, weight: Tensor, ids: Tensor, target: Tensor) -> None:
    # Made before the student's numbers, small ([n, k + 1]) and the same for both sides.
    teacher = torch.linspace(0, -6, ids.shape[1] + 1).log_softmax(0).expand(len(ids), -1)
    if name == "op":
        logp, log_rest, target_logp = linear_label_logprobs(hidden, weight, ids, target=target)
        assert target_logp is not None
    else:
        logp, log_rest, target_logp = materialised(hidden, weight, ids, target)
    loss = forward_kl(teacher[:, :-1], teacher[:, -1], logp, log_rest)
    torch.autograd.backward((loss + cross_entropy(target_logp)).mean())


def measure_here(name: str, n: int, d: int) -> int:
    """Peak extra bytes of one step, in this (fresh) process."""
    torch.manual_seed(0)
    weight = torch.randn(VOCAB, d).mul_(d**-0.5).requires_grad_()
    hidden = torch.randn(n, d).requires_grad_()
    ids = (torch.randint(VOCAB // K, (n, 1)) + torch.arange(K) * (VOCAB // K)).contiguous()
    target = torch.randint(VOCAB, (n,))
    # Threads, libraries and code pages come in here, on a vocabulary too small to leave a trace.
    small = torch.randn(256, d, requires_grad=True)
    step(
        name,
        hidden.detach()[:8].requires_grad_(),
        small,
        torch.arange(K).repeat(8, 1),
        torch.arange(8),
    )
    Path("/proc/self/clear_refs").write_text("5")  # peak := present
    before = status_bytes("VmRSS")
    step(name, hidden, weight, ids, target)
    excluded = 4 * (weight.numel() + hidden.numel() + n * (K + 2))
    return status_bytes("VmHWM") - before - excluded


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measure(name: str, n: int, d: int) -> int:
    command = [sys.executable, "-m", "benchmarks.op_memory", "--measure", name, str(n), str(d)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="n = 4096 (needs 16 GB and minutes)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure_here(args.measure[0], *map(int, args.measure[1:])))
        return

    size = FULL if args.full else DEFAULT
    n, d = size["n"], size["d"]
    print(
        f"one loss step in float32, n={n} V={VOCAB:,} k={K} d={d}; peak resident set above start,"
    )
    print("without weights, gradients and outputs, each in a fresh process")
    op, op_quarter = measure("op", n, d), measure("op", n // 4, d)
    dense = measure("materialised", n, d)
    logits = n * VOCAB * 4
    for label, value in (
        ("op", op),
        (f"op, n={n // 4}", op_quarter),
        ("materialised logits", dense),
        ("(one float32 [n, V] tensor)", logits),
    ):
        print(f"  {label:30s}{value / 2**20:10.1f} MiB")
    print(
        f"op / materialised = 1/{dense / op:.0f} (target 1/20); n x 4 costs x {op / op_quarter:.2f}"
    )
    result = {
        "ratio": op / dense,
        "target": TARGET,
        "of_one_logits_tensor": op / logits,
        "growth_at_4n": op / op_quarter,
        "op_bytes": op,
        "materialised_bytes": dense,
        "chunk_bytes": CHUNK_BYTES,
        "n": n,
        "vocab": VOCAB,
        "k": K,
        "d": d,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
