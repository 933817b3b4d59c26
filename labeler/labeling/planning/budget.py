"""What a run will cost, said before it starts: bytes, disk, engine memory, time."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.engine_args import engine_arguments
from schemas import Identity, SoftshardsError

BYTES_A_LABEL = {"plain": 2.8, "compact": 1.7}
"""Bytes a stored logprob (id and value) by codec; `labeler inspect` prints what it came to."""
BYTES_A_DRAW = 0.6
"""Bytes a drawn id: many are drawn more than once."""
BYTES_A_POSITION = 8.0
"""Bytes a position beside them: tail, actual token, spans, text."""
LOGITS_COPIES = 3
"""Float32 arrays of tokens x vocabulary that an engine step holds at once: logits, their
log-softmax and what is made on the way."""
DEFAULT_BATCHED_TOKENS = 2048
SMALLEST_BATCHED_TOKENS = 256
VLLM_SHARE = 0.9
"""Share of a GPU that vLLM fills with model and cache, by default."""
CPU_CACHE_BYTES = 1 << 30
"""KV cache of vLLM on a CPU, by default."""
UNQUANTIZED = ("F64", "F32", "F16", "BF16")
UNIT_BYTES = 1 << 30
"""Memory for the ids and logprobs of one unit."""
ENGINE_EFFICIENCY = 0.5
"""Share of the measured matrix-multiply speed that scoring reaches; a rough figure."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the device that the teacher runs on, in bytes; all 0 for a served teacher.

    Attributes:
        batched_tokens: tokens an engine step at most.
        weights: the teacher's, without a second copy of the head in float32.
        cache: KV cache; None where vLLM takes what is left.
        logits: the logits of a step, which no engine counts in its own plan of memory.
        free, total: of the device now; of all devices together under tensor parallelism.
    """

    batched_tokens: int
    weights: int
    cache: int | None
    logits: int
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Estimates for a run: bytes of the label set, free bytes of its disk, engine memory."""

    bytes: int
    free_bytes: int
    memory: Memory


def _position_bytes(config: LabelConfig, identity: Identity) -> float:
    ids = identity.k * BYTES_A_LABEL[config.codec] + config.draws * BYTES_A_DRAW
    return ids + BYTES_A_POSITION


def estimate(config: LabelConfig, identity: Identity, *, labels: int) -> Budget:
    """Estimate what `labels` label positions take.

    Raises:
        SoftshardsError: no step of the engine fits in memory.
    """
    return Budget(
        bytes=int(labels * _position_bytes(config, identity)),
        free_bytes=shutil.disk_usage(_existing(config.out)).free,
        memory=engine_memory(config, identity),
    )


def engine_memory(
    config: LabelConfig, identity: Identity, *, batched_tokens: int | None = None
) -> Memory:
    """Estimate what the engine takes, with steps of `batched_tokens` where these are known.

    Raises:
        SoftshardsError: no step of the engine fits in memory.
    """
    if config.engine == "served":
        return Memory(batched_tokens=0, weights=0, cache=0, logits=0, free=0, total=0)
    if config.engine == "transformers":
        from labeler.labeling.engines.transformers_engine import CHUNK as tokens

        cache: int | None = 0  # one sequence at a time
    else:
        tokens = batched_tokens or bound_batched_tokens(config, identity)
        cache = None if _on_gpu() else CPU_CACHE_BYTES
        if config.kv_cache_gb is not None:
            cache = int(config.kv_cache_gb * (1 << 30))
    devices = _devices(config)
    offloaded = int(engine_arguments(config.engine_arg).get("cpu_offload_gb", 0) * (1 << 30))
    return Memory(
        batched_tokens=tokens,
        weights=max(0, weights_size(config.model, identity.dtype)[1] - offloaded),
        cache=cache,
        logits=logits_bytes(tokens, identity.vocab_size) * devices,
        free=device_memory()[0] * devices,
        total=device_memory()[1] * devices,
    )


def bound_batched_tokens(config: LabelConfig, identity: Identity) -> int:
    """Tokens an engine step at most: what was asked for, or 2048 halved until its logits fit.

    They fit when they take at most a quarter of the memory that is free now, before the teacher is
    loaded; and, where vLLM fills a GPU with its cache, at most what it leaves. Never fewer than
    `config.max_sequences`, which vLLM wants.

    Raises:
        SoftshardsError: even the logits of the smallest step do not fit.
    """
    if config.max_batched_tokens is not None:
        return max(config.max_batched_tokens, config.max_sequences)
    smallest = max(SMALLEST_BATCHED_TOKENS, config.max_sequences)
    tokens = max(DEFAULT_BATCHED_TOKENS, smallest)
    free = device_memory()[0]
    room = free * min(0.25, _left_by_vllm(config))
    while logits_bytes(tokens, identity.vocab_size) > room:
        if tokens == smallest:
            need = logits_bytes(smallest, identity.vocab_size)
            raise SoftshardsError(
                f"the logits of an engine step of {smallest} tokens over {identity.vocab_size} ids "
                f"take {need / 1e9:.2f} GB, of {free / 1e9:.2f} GB of memory that are free they "
                f"may have {room / 1e9:.2f}",
                path=config.model,
                hint="free some memory, lower --max-sequences if it is above "
                f"{SMALLEST_BATCHED_TOKENS}, bound the cache with --kv-cache-gb, or choose a step "
                "yourself with --max-batched-tokens",
            )
        tokens = max(tokens // 2, smallest)
    return tokens


def _left_by_vllm(config: LabelConfig) -> float:
    """Share of the device that vLLM leaves to what it does not plan."""
    if config.engine != "vllm" or config.kv_cache_gb is not None or not _on_gpu():
        return 1.0
    return 1 - engine_arguments(config.engine_arg).get("gpu_memory_utilization", VLLM_SHARE)


def _devices(config: LabelConfig) -> int:
    """GPUs that one teacher is spread over."""
    if not _on_gpu() or config.engine != "vllm":
        return 1
    given = engine_arguments(config.engine_arg)
    return given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1)


def labels_a_unit(config: LabelConfig, vocab_size: int) -> int:
    """Labels a work unit: what was asked for, or fewer where that many would not fit in memory.

    A unit's labels are in memory twice: one unit is labeled while another is written.
    """
    return max(1, min(config.unit_labels, UNIT_BYTES // (8 * min(config.k, vocab_size))))


def logits_bytes(tokens: int, vocab_size: int) -> int:
    """Bytes that the logits of an engine step of `tokens` take beside the model and its cache."""
    return LOGITS_COPIES * tokens * vocab_size * 4


def device_memory() -> tuple[int, int]:
    """Bytes free and in total of the GPU, where there is one, else of main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def weights_size(model: Path, dtype: str) -> tuple[int, int]:
    """Parameters of a checkpoint, and the bytes they take when it runs in `dtype`.

    Quantized weights are taken as they are on disk.
    """
    import torch
    from safetensors import safe_open

    item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    parameters = size = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                tensor = file.get_slice(name)
                count = math.prod(tensor.get_shape())
                parameters += count
                size += count * (item if tensor.get_dtype() in UNQUANTIZED else 1)
    for path in model.glob("*.bin"):
        parameters += path.stat().st_size // item
        size += path.stat().st_size
    return parameters, size


def rough_seconds(model: Path, dtype: str, *, tokens: int) -> float:
    """Engine seconds for reading or generating `tokens`, within a factor of three.

    From the number of weights and the speed of one matrix product on the device that is there, so
    only a dry run asks: a real one must not take memory from the engine.
    `labeler.labeling.runs.timing` measures instead.
    """
    parameters, _ = weights_size(model, dtype)
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
            hint="lower --k, label less, or choose another disk for --out",
        )


def require_memory(memory: Memory, model: Path) -> None:
    """Refuse, before it is loaded, a teacher that can never fit in memory.

    Raises:
        SoftshardsError: weights, cache and logits are more than the device has in total.
    """
    parts = {
        "weights": (memory.weights, "--dtype or --quantization"),
        "KV cache": (memory.cache or 0, "--kv-cache-gb"),
        f"logits ({memory.batched_tokens} tokens a step)": (
            memory.logits,
            "--max-batched-tokens and --max-sequences",
        ),
    }
    need = sum(size for size, _ in parts.values())
    if need <= memory.total:
        return
    listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, (size, _) in parts.items())
    name, (_, setting) = max(parts.items(), key=lambda item: item[1][0])
    raise SoftshardsError(
        f"the teacher cannot fit in {memory.total / 1e9:.2f} GB of memory: {listed}",
        path=model,
        hint=f"make the {name.split(' (')[0]} smaller with {setting}, or spread the teacher over "
        "GPUs with --engine-arg.tensor-parallel-size",
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
