"""Time and memory of a student's training step: label loss against cross-entropy, by attention.

    python -m benchmarks.student_step [--device cuda]

A step takes one pack of documents of 512 tokens, all of them labeled (k = 64), from host memory
through forward, loss, backward and clipping to AdamW. The student is a Qwen3 of 0.6 B parameters
with random weights, in bfloat16 by autocast over float32 weights. The label loss (forward KL with
tail, and cross-entropy) is the trainer's; cross-entropy alone is what transformers computes, from
materialized logits, or Liger's fused kernel where it is installed. Steps of all kinds alternate.
On a CPU the student is tiny and in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from schemas.errors import first_line
from trainer.data.collate import Attention, Batch, lay_out
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.losses.objective import LossTerm, Objective
from trainer.ops.label_logprobs import default_chunk_bytes
from trainer.student import document_attention
from trainer.student.student import Student
from trainer.train.optim import make_optimizer
from trainer.train.step_memory import estimate

K = 64
GPU: dict[str, Any] = {"vocab": 151_936, "tokens": 8192, "document": 512, "rounds": 7}
CPU: dict[str, Any] = {"vocab": 512, "tokens": 128, "document": 32, "rounds": 2}
QWEN3_600M = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
OBJECTIVE = Objective(
    terms=(LossTerm(name="forward_kl", start=1, stop=1), LossTerm(name="ce", start=1, stop=1))
)

Loss = Callable[[Batch], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = torch.device(parser.parse_args().device)
    on_gpu = device.type == "cuda"
    size, shape = (GPU, QWEN3_600M) if on_gpu else (CPU, TINY)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=size["vocab"], tie_word_embeddings=True, **shape)
    model = Qwen3ForCausalLM(config)
    document_attention.use_document_attention(model)
    student = Student(model, size["vocab"]).train()
    memory = estimate(
        student,
        pack_tokens=size["tokens"],
        k=K,
        window_bytes=0,
        chunk_bytes=default_chunk_bytes(device),
        optimizer="adamw_fused",
        bf16=on_gpu,
        gradient_checkpointing=False,
        world=1,
        sharded=False,
    )
    student.to(device)
    print(
        f"one step of {sum(p.numel() for p in student.parameters()) / 1e6:.0f} M parameters, "
        f"{size['tokens']} tokens in documents of {size['document']}, k={K}, "
        f"{'bf16 autocast' if on_gpu else 'fp32'}, {device}"
    )
    rows = measure_kinds(kinds(student), student, size, device)
    for row in rows:
        peak = "" if row["bytes"] is None else f"{row['bytes'] / 1e9:8.2f} GB"
        print(f"  {row['name']:44s}{row['seconds'] * 1e3:9.1f} ms{peak}")
    print(f"estimate of trainer train: {memory.total / 1e9:.2f} GB")
    print(json.dumps({"rows": rows, "estimate_bytes": memory.total, **size}))


def kinds(student: Student) -> dict[str, tuple[Attention, Loss]]:
    """Return the ways to keep documents apart, and the losses, by name."""

    def labels(budget: int | None = None) -> Loss:
        def loss(batch: Batch) -> Tensor:
            student.chunk_bytes = budget
            weights = token_weights(OBJECTIVE.weighting, batch)
            return batch_loss(OBJECTIVE, student(batch), batch, weights, [1.0, 1.0])[0]

        return loss

    def plain(batch: Batch) -> Tensor:
        head = student.model.get_output_embeddings()
        logits = head(student.hidden(batch))
        return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")

    def liger(batch: Batch) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        head, hidden = student.model.get_output_embeddings(), student.hidden(batch)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        result: Tensor = loss(head.weight.to(dtype), hidden.to(dtype), batch.targets)
        return result

    return {
        "labels": ("documents", labels()),
        "labels, chunks of 64 MiB": ("documents", labels(64 * 2**20)),
        "labels, one document after the other": ("documents", labels()),
        "labels, explicit mask": ("mask", labels()),
        "cross-entropy, materialized logits": ("documents", plain),
        "cross-entropy, Liger": ("documents", liger),
    }


def measure_kinds(
    ways: dict[str, tuple[Attention, Loss]],
    student: Student,
    size: dict[str, Any],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Return the median seconds and the peak bytes of each kind of step."""
    optimizer = make_optimizer(
        "adamw_fused", student.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01
    )
    batches = {attention: make_batch(size, attention) for attention, _ in ways.values()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int | None] = {}
    flash = document_attention.varlen_attn
    for number in range(size["rounds"] + 2):  # two to warm up
        for name, (attention, loss) in list(ways.items()):
            single = name.endswith("one document after the other")
            document_attention.varlen_attn = None if single else flash
            implementation = (
                "sdpa" if attention == "mask" else document_attention.DOCUMENT_ATTENTION
            )
            student.model.set_attn_implementation(implementation)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                seconds = step(student, optimizer, loss, batches[attention], device)
            except Exception as error:  # a library that is missing, or memory
                print(f"  {name}: {type(error).__name__}: {first_line(error)}")
                del ways[name]
                continue
            peaks[name] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
            if number >= 2:
                times[name].append(seconds)
    document_attention.varlen_attn = flash
    return [
        {"name": name, "seconds": statistics.median(times[name]), "bytes": peaks[name]}
        for name in ways
    ]


def step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: Batch,
    device: torch.device,
) -> float:
    """Make a step and return its seconds."""
    _wait(device)
    begin = time.perf_counter()
    moved = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        value = loss(moved) / len(batch.targets)
    value.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(device)
    return time.perf_counter() - begin


def make_batch(size: dict[str, Any], attention: Attention) -> Batch:
    """Return a pack of random tokens with random labels at all but the first of each document."""
    rng = np.random.default_rng(0)
    tokens, document, vocab = size["tokens"], size["document"], size["vocab"]
    lengths = np.full(tokens // document, document)
    ids = rng.integers(0, vocab, tokens).astype(np.int32)
    at = np.flatnonzero(np.arange(tokens) % document)
    n = len(at)
    topk = rng.integers(0, vocab // K, (n, 1)) + np.arange(K) * (vocab // K)
    logp = torch.randn(n, K + 1).log_softmax(1)
    return Batch(
        **vars(lay_out(ids, lengths, attention)),
        rows=torch.from_numpy(at - 1),
        targets=torch.from_numpy(ids[at].astype(np.int64)),
        topk_ids=torch.from_numpy(topk),
        topk_logprobs=logp[:, :K].contiguous(),
        tail_logprob=logp[:, K].contiguous(),
        token_logprob=torch.full((n,), -1.0),
        drawn_ids=None,
        drawn_counts=None,
        kinds=torch.zeros(n, dtype=torch.int64),
        documents=torch.from_numpy(at // document),
        sources=[""] * len(lengths),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
