"""Memory of the engine, estimated before the teacher is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.engine_args import engine_arguments
from labeler.labeling.teacher.engine_limits import CPU_KV_CACHE_BYTES, REFERENCE_CHUNK
from schemas import SoftshardsError
from schemas.errors import first_line

LOGITS_COPIES = 3
"""Float32 arrays of tokens x vocabulary that an engine step holds at once: the logits, their
log-softmax and intermediate values."""
DEFAULT_BATCHED_TOKENS = 2048
SMALLEST_BATCHED_TOKENS = 256
VLLM_SHARE = 0.9
"""Share of a GPU that vLLM fills with model and cache, by default."""
UNQUANTIZED = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the device that the teacher runs on, in bytes; all 0 for a served teacher.

    Attributes:
        batched_tokens: most tokens per engine step.
        weights: the teacher's, without a second copy of the head in float32.
        cache: KV cache; None where vLLM takes the rest.
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
class CheckpointSize:
    """Parameters of a checkpoint, and the bytes they take when it runs in some dtype."""

    parameters: int
    bytes: int


def engine_memory(
    config: LabelConfig, size: CheckpointSize, *, vocab_size: int, batched_tokens: int
) -> Memory:
    """Estimate the memory of an engine.

    Args:
        config: the engine and its settings.
        size: of the teacher, in the dtype it runs in.
        vocab_size: number of token ids.
        batched_tokens: tokens per engine step (vLLM only).
    """
    if config.engine == "served":
        return Memory(batched_tokens=0, weights=0, cache=0, logits=0, free=0, total=0)
    if config.engine == "transformers":
        tokens = REFERENCE_CHUNK
        cache: int | None = 0  # one sequence at a time
    else:
        tokens = batched_tokens
        cache = None if on_gpu() else CPU_KV_CACHE_BYTES
        if config.kv_cache_gb is not None:
            cache = int(config.kv_cache_gb * (1 << 30))
    given = engine_arguments(config.engine_arg)
    devices = _device_count(given) if config.engine == "vllm" else 1
    offloaded = int(given.get("cpu_offload_gb", 0) * (1 << 30))
    free, total = device_memory()
    return Memory(
        batched_tokens=tokens,
        weights=max(0, size.bytes - offloaded),
        cache=cache,
        logits=logits_bytes(tokens, vocab_size) * devices,
        free=free * devices,
        total=total * devices,
    )


def step_tokens(config: LabelConfig, vocab_size: int) -> int:
    """Return the tokens per engine step that a label set records: other steps may round otherwise.

    Raises:
        SoftshardsError: even the logits of the smallest step do not fit in memory.
    """
    if config.engine == "vllm":
        return fit_batched_tokens(config, vocab_size)
    return config.max_batched_tokens or DEFAULT_BATCHED_TOKENS


def fit_batched_tokens(config: LabelConfig, vocab_size: int) -> int:
    """Return most tokens per vLLM step: --max-batched-tokens, or 2048 halved until its logits fit.

    They fit when they take at most a quarter of the memory that is free now, before the teacher is
    loaded; and, where vLLM fills a GPU with its cache, at most the share that it leaves. Never
    fewer than `config.max_sequences`, which vLLM requires.

    Raises:
        SoftshardsError: even the logits of the smallest step do not fit.
    """
    if config.max_batched_tokens is not None:
        return max(config.max_batched_tokens, config.max_sequences)
    smallest = max(SMALLEST_BATCHED_TOKENS, config.max_sequences)
    tokens = max(DEFAULT_BATCHED_TOKENS, smallest)
    free, _ = device_memory()
    room = free * min(0.25, _share_left_by_vllm(config))
    while logits_bytes(tokens, vocab_size) > room:
        if tokens == smallest:
            need = logits_bytes(smallest, vocab_size)
            raise SoftshardsError(
                f"the logits of an engine step of {smallest} tokens over {vocab_size} ids need "
                f"{need / 1e9:.2f} GB; {room / 1e9:.2f} GB of the {free / 1e9:.2f} GB of free "
                "memory are available for them",
                path=config.model,
                hint="free some memory, lower --max-sequences if it is above "
                f"{SMALLEST_BATCHED_TOKENS}, bound the cache with --kv-cache-gb, or choose a step "
                "yourself with --max-batched-tokens",
            )
        tokens = max(tokens // 2, smallest)
    return tokens


def _share_left_by_vllm(config: LabelConfig) -> float:
    """Return the share of the device that vLLM leaves free."""
    if config.engine != "vllm" or config.kv_cache_gb is not None or not on_gpu():
        return 1.0
    return 1 - float(engine_arguments(config.engine_arg).get("gpu_memory_utilization", VLLM_SHARE))


def _device_count(arguments: dict[str, Any]) -> int:
    """Return the number of GPUs that one teacher is spread over."""
    if not on_gpu():
        return 1
    tensor = int(arguments.get("tensor_parallel_size", 1))
    return tensor * int(arguments.get("pipeline_parallel_size", 1))


def logits_bytes(tokens: int, vocab_size: int) -> int:
    """Return the bytes that the logits of an engine step take beside the model and its cache."""
    return LOGITS_COPIES * tokens * vocab_size * 4


def device_memory() -> tuple[int, int]:
    """Return free and total bytes of the GPU, where there is one, else of main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def on_gpu() -> bool:
    """Return whether the engine runs on a GPU."""
    import torch

    return torch.cuda.is_available()


def checkpoint_size(model: Path, dtype: str) -> CheckpointSize:
    """Read the size of a checkpoint from its file headers.

    Args:
        model: its folder.
        dtype: dtype that it runs in; quantized weights keep their size on disk.

    Raises:
        SoftshardsError: a file cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    parameters = size = 0
    for path in model.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    tensor = file.get_slice(name)
                    count = math.prod(tensor.get_shape())
                    parameters += count
                    size += count * (item if tensor.get_dtype() in UNQUANTIZED else 1)
        except (SafetensorError, OSError) as error:
            what = f"the weights cannot be read: {first_line(error)}"
            raise SoftshardsError(what, path=path, hint="copy the checkpoint again") from error
    for path in model.glob("*.bin"):
        parameters += path.stat().st_size // item
        size += path.stat().st_size
    return CheckpointSize(parameters=parameters, bytes=size)


def remote_size(size: int, stored: str, dtype: str) -> CheckpointSize:
    """Estimate the size of a checkpoint from the bytes of its files, which are elsewhere.

    Args:
        size: bytes of the weights.
        stored: dtype that they are stored in.
        dtype: dtype that it runs in.
    """
    import torch

    parameters = size // getattr(torch, stored).itemsize
    return CheckpointSize(parameters=parameters, bytes=parameters * getattr(torch, dtype).itemsize)


def require_memory(memory: Memory, model: Path) -> None:
    """Refuse, before it is loaded, a teacher that can never fit in memory.

    Raises:
        SoftshardsError: weights, cache and logits are more than the device has in total.
    """
    parts = {
        "weights": (memory.weights, "--dtype or --quantization"),
        "KV cache": (memory.cache or 0, "--kv-cache-gb"),
        f"logits ({memory.batched_tokens} tokens per step)": (
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
