"""T1: time of a training step with label loss against the same step with plain chunked CE.

    python -m benchmarks.step_time [--full]

A step is forward and backward of a random Llama decoder and its head. Label loss: the op, forward
KL with tail, and CE on the actual token. Plain: chunked CE on its own, written below with the same
chunking, buffers and recomputation, so that the ratio shows what labels cost and not what chunking
does. Beside it, CE that makes its gradient in forward (three products instead of four; possible
only where the loss is known inside the op), and the losses of TRL and Liger that run on a CPU
(`benchmarks/peers.py`): they hold a dense teacher, whose head is part of their step and whose body
is not.

Steps of all kinds alternate, so that load from elsewhere meets them alike; the ratio is the median
of the rounds' own ratios. On a busy machine look at the quartiles and at the ratio of CPU times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from benchmarks.peers import PEERS, Loss
from trainer.losses import cross_entropy, forward_kl
from trainer.ops import linear_label_logprobs

DEFAULT = {"vocab": 49_152, "layers": 6, "tokens": 256, "rounds": 9, "peer_rounds": 1}
FULL = {"vocab": 151_936, "layers": 30, "tokens": 4096, "rounds": 9, "peer_rounds": 3}
WIDTH, FFN, HEADS = 576, 1536, 9  # SmolLM2-135M; the default has its vocabulary, too
K, CHUNK = 64, 128
LOGITS_HELD = {"trl_jsd": 9, "trl_top_k_tail": 5}
"""[n, V] tensors that a peer holds at once, as measured by `benchmarks.op_memory`."""
TARGET = 1.05


class ChunkedCE(torch.autograd.Function):
    """Compute the mean cross-entropy of a linear head in chunks; backward recomputes logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        z_all = hidden.new_empty(CHUNK, len(weight))
        lse = hidden.new_empty(len(hidden))
        total = hidden.new_zeros(())
        for rows in chunks(len(hidden)):
            z = torch.mm(hidden[rows], weight.t(), out=z_all[: rows.stop - rows.start])
            total -= z.gather(1, target[rows, None]).sum()
            top = z.amax(1)
            lse[rows] = z.sub_(top[:, None]).exp_().sum(1).log_().add_(top)
        ctx.save_for_backward(hidden, weight, target, lse)
        return (total + lse.sum()) / len(hidden)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, target, lse = ctx.saved_tensors
        u = u / len(hidden)
        z_all = hidden.new_empty(CHUNK, len(weight))
        grad_h, grad_w = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in chunks(len(hidden)):
            z = torch.mm(hidden[rows], weight.t(), out=z_all[: rows.stop - rows.start])
            z.sub_(lse[rows, None]).exp_().mul_(u)
            z.scatter_add_(1, target[rows, None], (-u).expand(len(z), 1))
            grad_h[rows] = z @ weight
            grad_w.addmm_(z.t(), hidden[rows])
        return grad_h, grad_w, None


class EagerCE(torch.autograd.Function):
    """Compute the same loss with its gradient in forward: no recomputation."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        z_all = hidden.new_empty(CHUNK, len(weight))
        grad_h, grad_w = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros(())
        for rows in chunks(len(hidden)):
            z = torch.mm(hidden[rows], weight.t(), out=z_all[: rows.stop - rows.start])
            top, at = z.amax(1), z.gather(1, target[rows, None])
            mass = z.sub_(top[:, None]).exp_().sum(1)
            total += (mass.log() + top).sum() - at.sum()
            z.div_(mass[:, None] * len(hidden))
            z.scatter_add_(1, target[rows, None], z.new_full((len(z), 1), -1 / len(hidden)))
            grad_h[rows] = z @ weight
            grad_w.addmm_(z.t(), hidden[rows])
        ctx.save_for_backward(grad_h, grad_w)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_h, grad_w = ctx.saved_tensors
        return grad_h.mul_(u), grad_w.mul_(u), None


def chunks(n: int) -> list[slice]:
    return [slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--full",
        action="store_true",
        help="30 layers, 4096 tokens, a vocabulary of 151,936 (an hour or more)",
    )
    full = parser.parse_args().full
    size, seconds = (FULL, 3600) if full else (DEFAULT, 25)
    torch.manual_seed(0)
    n, vocab = size["tokens"], size["vocab"]
    model = LlamaModel(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=WIDTH,
            intermediate_size=FFN,
            num_hidden_layers=size["layers"],
            num_attention_heads=HEADS,
            num_key_value_heads=3,
            use_cache=False,
        )
    )
    weight = model.embed_tokens.weight  # tied, as in the model this is shaped after
    tokens = torch.randint(vocab, (1, n + 1))
    target = tokens[0, 1:]
    ids = torch.stack([torch.randperm(vocab)[:K] for _ in range(n)])
    teacher = torch.randn(n, K + 1).log_softmax(1)

    def label_loss(hidden: Tensor) -> Tensor:
        logp, log_rest, target_logp = linear_label_logprobs(
            hidden, weight, ids, target=target, chunk_size=CHUNK
        )
        assert target_logp is not None
        kl = forward_kl(teacher[:, :K], teacher[:, K], logp, log_rest)
        return (kl + cross_entropy(target_logp)).mean()

    def step(loss: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        model.zero_grad(set_to_none=True)
        wall, cpu = time.perf_counter(), time.process_time()
        loss(model(input_ids=tokens[:, :-1]).last_hidden_state[0]).backward()
        return time.perf_counter() - wall, time.process_time() - cpu

    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "label": label_loss,
        "plain": lambda hidden: ChunkedCE.apply(hidden, weight, target),
        "eager": lambda hidden: EagerCE.apply(hidden, weight, target),
    }
    check_baselines(kinds["plain"], kinds["eager"], weight, target)
    for loss in kinds.values():
        step(loss)
    names = list(kinds)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    begin = time.perf_counter()
    for i in range(size["rounds"]):
        for name in names[i % 3 :] + names[: i % 3]:
            times[name].append(step(kinds[name]))
        if i >= 2 and time.perf_counter() - begin > seconds:
            break

    peers = time_peers(step, label_loss, weight, target, size["peer_rounds"])

    def ratios(other: str, clock: int = 0) -> list[float]:
        """Return lower quartile, median and upper quartile of label / other over the rounds."""
        pairs = zip(times["label"], times[other], strict=True)
        return statistics.quantiles([a[clock] / b[clock] for a, b in pairs], n=4)

    walls = {name: statistics.median(wall for wall, _ in times[name]) for name in names}
    print(
        f"forward + backward, {size['layers']} layers, d={WIDTH} V={vocab:,} k={K} n={n}, float32"
    )
    for name, label in (
        ("label", "label loss (op, KL + tail, CE)"),
        ("plain", "plain chunked CE"),
        ("eager", "chunked CE, gradient in forward"),
    ):
        print(f"  {label:34s}{walls[name] * 1e3:9.1f} ms")
    low, ratio, high = ratios("plain")
    for name, peer in peers.items():
        print(f"  {name:34s}{peer['seconds'] * 1e3:9.1f} ms" if peer else f"  {name}: does not fit")
    print(f"label / plain chunked CE = {ratio:.3f} ({low:.3f} to {high:.3f}; target {TARGET})")
    result = {
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "target": TARGET,
        "vs_gradient_in_forward": ratios("eager")[1],
        "cpu_ratio": ratios("plain", clock=1)[1],
        "peers": peers,
        **{f"{name}_s": value for name, value in walls.items()},
        "rounds": len(times["label"]),
        "layers": size["layers"],
        "tokens": n,
        "vocab": vocab,
        "k": K,
        "d": WIDTH,
        "chunk": CHUNK,
    }
    print(json.dumps(result))


def time_peers(
    step: Callable[[Callable[[Tensor], Tensor]], tuple[float, float]],
    label_loss: Callable[[Tensor], Tensor],
    weight: Tensor,
    target: Tensor,
    rounds: int,
) -> dict[str, dict[str, float] | None]:
    """Return seconds per step with each peer's loss, and the label loss's relative to it.

    None for a peer whose logits do not fit into free memory.
    """
    teacher_hidden = torch.randn(len(target), WIDTH)
    found: dict[str, dict[str, float] | None] = {}
    for name, peer in PEERS.items():
        need = LOGITS_HELD.get(name, 0) * len(target) * len(weight) * 4
        if need > psutil.virtual_memory().available:
            found[name] = None
            continue

        def loss(hidden: Tensor, peer: Loss = peer) -> Tensor:
            return peer(hidden, weight, teacher_hidden, target)

        step(loss)
        pairs = [(step(label_loss), step(loss)) for _ in range(rounds)]
        found[name] = {
            "seconds": statistics.median(theirs[0] for _, theirs in pairs),
            "label_to_it": statistics.median(ours[0] / theirs[0] for ours, theirs in pairs),
            "label_to_it_cpu": statistics.median(ours[1] / theirs[1] for ours, theirs in pairs),
        }
    return found


def check_baselines(
    plain: Callable[[Tensor], Tensor],
    eager: Callable[[Tensor], Tensor],
    weight: Tensor,
    target: Tensor,
) -> None:
    """Check that the baseline computes the same loss."""
    hidden = torch.randn(len(target), WIDTH, requires_grad=True)
    want = torch.nn.functional.cross_entropy(hidden @ weight.t(), target)
    want_grads = torch.autograd.grad(want, [hidden, weight])
    for loss in (plain, eager):
        got = loss(hidden)
        torch.testing.assert_close(got, want)
        for g, w in zip(torch.autograd.grad(got, [hidden, weight]), want_grads, strict=True):
            torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-3)


if __name__ == "__main__":
    main()
