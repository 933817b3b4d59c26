"""What a run will cost, said before it starts: bytes, disk, engine memory, time."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from labeler.config import LabelConfig
from schemas import Identity, SoftshardsError

BYTES_A_LABEL = 2.8
"""Bytes a stored logprob (id and value) under plain/1; `labeler inspect` prints what it came to."""
BYTES_A_POSITION = 8.0
"""Bytes a position beside them: tail, actual token, spans, text."""
LOGITS_COPIES = 3
"""Float32 arrays of tokens x vocabulary that an engine step holds at once: logits, their
log-softmax and what is made on the way."""
LOGITS_SHARE = 4
"""The logits of a step may take one part in this many of the free memory."""
DEFAULT_BATCHED_TOKENS = 2048
SMALLEST_BATCHED_TOKENS = 256
ENGINE_EFFICIENCY = 0.5
"""Share of the measured matrix-multiply speed that scoring reaches; a rough figure."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Estimates for a run: the label set, the disk it goes to, and the logits of an engine step."""

    bytes: int
    free_bytes: int
    logits_bytes: int


def estimate(config: LabelConfig, identity: Identity, *, labels: int) -> Budget:
    """Estimate what `labels` label positions take."""
    return Budget(
        bytes=int(labels * (identity.k * BYTES_A_LABEL + BYTES_A_POSITION)),
        free_bytes=shutil.disk_usage(_existing(config.out)).free,
        logits_bytes=(config.max_batched_tokens or 2048) * identity.vocab_size * 4,
    )


def bound_batched_tokens(config: LabelConfig, identity: Identity) -> int:
    """Tokens an engine step at most: what was asked for, or 2048 halved until its logits fit.

    They fit when they take at most a quarter of the memory that is free now, before the teacher is
    loaded. Never fewer than `config.max_sequences`, which vLLM wants.

    Raises:
        SoftshardsError: even the logits of the smallest step do not fit.
    """
    if config.max_batched_tokens is not None:
        return max(config.max_batched_tokens, config.max_sequences)
    smallest = max(SMALLEST_BATCHED_TOKENS, config.max_sequences)
    tokens = max(DEFAULT_BATCHED_TOKENS, smallest)
    free = free_memory()
    while logits_bytes(tokens, identity.vocab_size) > free // LOGITS_SHARE:
        if tokens == smallest:
            need = logits_bytes(smallest, identity.vocab_size)
            raise SoftshardsError(
                f"the logits of an engine step of {smallest} tokens over {identity.vocab_size} ids "
                f"take {need / 1e9:.2f} GB, more than a quarter of the {free / 1e9:.2f} GB of "
                "memory that are free",
                path=config.model,
                mend="free some memory, lower --max-sequences if it is above "
                f"{SMALLEST_BATCHED_TOKENS}, or choose a step with --max-batched-tokens",
            )
        tokens = max(tokens // 2, smallest)
    return tokens


def logits_bytes(tokens: int, vocab_size: int) -> int:
    """Bytes that the logits of an engine step of `tokens` take beside the model and its cache."""
    return LOGITS_COPIES * tokens * vocab_size * 4


def free_memory() -> int:
    """Bytes that are free on the GPU, where there is one, else in main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def rough_seconds(model: Path, dtype: str, *, tokens: int) -> float:
    """Engine seconds for reading or generating `tokens`, within a factor of three.

    From the size of the weights and the speed of one matrix product on the device that is there, so
    only a dry run asks: a real one must not take memory from the engine.
    """
    import torch

    files = [*model.glob("*.safetensors"), *model.glob("*.bin")]
    item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    parameters = sum(path.stat().st_size for path in files) / item
    return 2 * parameters * tokens / (_matmul_flops(dtype) * ENGINE_EFFICIENCY)


def require_space(budget: Budget, out: Path) -> None:
    """Refuse a run that cannot fit on the disk.

    Raises:
        SoftshardsError: the estimate is more than what is free.
    """
    if budget.bytes > budget.free_bytes:
        raise SoftshardsError(
            f"the label set would take about {budget.bytes / 1e9:.1f} GB, "
            f"free are {budget.free_bytes / 1e9:.1f} GB",
            path=out,
            mend="lower --k, label less, or choose another disk for --out",
        )


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _matmul_flops(dtype: str) -> float:
    """Floating-point operations a second of one matrix product on the device that is there."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
