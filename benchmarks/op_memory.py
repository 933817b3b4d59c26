"""T2: peak extra memory of the linear + label op against materialized logits with the same loss.

    python -m benchmarks.op_memory [--full]

Memory is peak resident set (VmHWM, Linux) of a fresh process for each measurement, above what was
resident just before: unlike a profiler of tensor allocations it also sees what kernels and the BLAS
library take inside, and unlike a peak in a shared process it cannot be hidden by an earlier one.
The outputs and the gradients of weight and hidden are subtracted, from all sides: the op holds all
of them at its peak, materialized logits may not, so the ratio errs against the op.

`exact` compares with the teacher's whole distribution, made from its states and head in chunks;
`online` is the same loss on materialized logits of both sides.

Beside it the losses of TRL and Liger that run on a CPU (`benchmarks/peers.py`). They and, by
default, materialized logits are measured at a quarter of the tokens: what materializes grows with
them in proportion, and is scaled; Liger's is flat from there on (its chunk). --full measures
materialized logits at all tokens, which takes 14 GB and minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import PEERS
from trainer.losses import cross_entropy, forward_kl
from trainer.ops import linear_label_logprobs
from trainer.ops.dense_divergence import TeacherHead, linear_divergence
from trainer.ops.label_logprobs import CHUNK_BYTES

VOCAB, K, N = 151_936, 64, 4096
DEFAULT_WIDTH, FULL_WIDTH = 64, 896  # 896: the smallest student with this vocabulary
FEW = 1024
TARGET = 1 / 20


def materialized(
    hidden: Tensor, weight: Tensor, ids: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.nn.functional.linear(hidden, weight).log_softmax(1)
    log_rest = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return log_p.gather(1, ids), log_rest, log_p.gather(1, target[:, None])[:, 0]


def step(name: str, hidden: Tensor, weight: Tensor, ids: Tensor, target: Tensor) -> None:
    # Allocated before the student's numbers; small, and the same for all.
    teacher = torch.linspace(0, -6, ids.shape[1] + 1).log_softmax(0).expand(len(ids), -1)
    if name in PEERS:
        PEERS[name](hidden, weight, hidden.detach().flip(0), target).backward()
        return
    if name in ("exact", "online"):
        states, head = hidden.detach().flip(0), weight.detach()
        if name == "exact":
            losses = linear_divergence(hidden, weight, states, TeacherHead(weight=head))
        else:
            log_q, log_p = ((x @ w.T).log_softmax(1) for x, w in ((states, head), (hidden, weight)))
            losses = (log_q.exp() * (log_q - log_p)).sum(1)
        losses.mean().backward()
        return
    if name == "op":
        logp, log_rest, target_logp = linear_label_logprobs(hidden, weight, ids, target=target)
        assert target_logp is not None
    else:
        logp, log_rest, target_logp = materialized(hidden, weight, ids, target)
    loss = forward_kl(teacher[:, :-1], teacher[:, -1], logp, log_rest)
    torch.autograd.backward((loss + cross_entropy(target_logp)).mean())


def measure_here(name: str, n: int, d: int) -> int:
    """Return the peak extra bytes of one step in this (fresh) process."""
    torch.manual_seed(0)
    weight = torch.randn(VOCAB, d).mul_(d**-0.5).requires_grad_()
    hidden = torch.randn(n, d).requires_grad_()
    ids = (torch.randint(VOCAB // K, (n, 1)) + torch.arange(K) * (VOCAB // K)).contiguous()
    target = torch.randint(VOCAB, (n,))
    # Load threads, libraries and code pages here, with a vocabulary too small to leave a trace.
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
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed at n={n}:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="d = 896, and 14 GB of memory")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure_here(args.measure[0], *map(int, args.measure[1:])))
        return

    d = FULL_WIDTH if args.full else DEFAULT_WIDTH
    logits = N * VOCAB * 4
    dense_n = N if args.full else FEW
    print(
        f"one loss step in float32, V={VOCAB:,} k={K} d={d}; peak resident set above start,\n"
        "without weights, gradients and outputs, each in a fresh process"
    )
    op = _show("op", N, d)
    op_few = _show("op", FEW, d)
    dense = _show("materialized", dense_n, d) * N / dense_n
    exact, online = _show("exact", N, d), _show("online", dense_n, d) * N / dense_n
    exact_few = _show("exact", FEW, d)
    peers = {name: _show(name, FEW, d) for name in PEERS}
    print(f"op / materialized = 1/{dense / op:.0f} at n={N} (target 1/20)")
    print(f"op, n={N} / n={FEW} = {op / op_few:.2f}")
    print(f"exact / two materialized logits = 1/{2 * logits / exact:.0f} at n={N} (target 1/20)")
    print(f"exact, n={N} / n={FEW} = {exact / exact_few:.2f}")
    result = {
        "ratio": op / dense,
        "target": TARGET,
        "of_one_logits_tensor": op / logits,
        "growth": op / op_few,
        "op_bytes": op,
        "materialized_bytes": dense,
        "materialized_n": dense_n,
        "exact": {
            "of_two_logits_tensors": exact / (2 * logits),
            "of_online": exact / online,
            "growth": exact / exact_few,
            "bytes": exact,
        },
        "peers": {name: {"bytes": v, "op_to_it": op_few / v} for name, v in peers.items()},
        "peers_n": FEW,
        "chunk_bytes": CHUNK_BYTES,
        "n": N,
        "vocab": VOCAB,
        "k": K,
        "d": d,
    }
    print(json.dumps(result))


def _show(name: str, n: int, d: int) -> int:
    value = measure(name, n, d)
    print(f"  {name:20s} n={n:<6d}{value / 2**20:10.1f} MiB", flush=True)
    return value


if __name__ == "__main__":
    main()
