"""`--engine-arg`: the vLLM arguments without flags of their own, and those that can change labels.

Stands below the engines: the label set's identity and the plan's budget read these arguments too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from schemas import SoftshardsError

OWN_FLAGS = {
    "model": "--model",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "max_model_len": "--max-length",
    "max_num_batched_tokens": "--max-batched-tokens",
    "max_num_seqs": "--max-sequences",
    "kv_cache_memory_bytes": "--kv-cache-gb",
    "enable_prefix_caching": "--no-deterministic",
    "seed": "--seed",
}
"""vLLM arguments that have flags of their own."""
RESERVED = ("logprobs_mode", "max_logprobs", "worker_extension_cls", "data_parallel_size")
"""vLLM arguments that labeling itself sets."""
HARMLESS = {
    *("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"),
    *("enable_expert_parallel", "enable_eplb", "distributed_executor_backend"),
    *("disable_custom_all_reduce", "max_parallel_loading_workers", "gpu_memory_utilization"),
    *("swap_space", "cpu_offload_gb", "block_size", "enforce_eager", "enable_chunked_prefill"),
    *("async_scheduling", "scheduling_policy", "max_num_partial_prefills"),
    *("compilation_config", "optimization_level", "performance_mode", "attention_backend"),
    *("disable_log_stats", "use_tqdm_on_load", "download_dir", "trust_remote_code"),
    *("skip_tokenizer_init", "disable_hybrid_kv_cache_manager", "safetensors_load_strategy"),
}
"""vLLM arguments that decide where and how fast the teacher runs, not its outputs (up to rounding).
All others are assumed to change labels, and become part of the identity."""


def engine_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by vLLM's names, with strings read as YAML.

    Args:
        given: values by flag (`--engine-arg.FLAG VALUE`): `2` is a number, `{...}` a dict.

    Raises:
        SoftshardsError: an argument has a flag of its own, or labeling sets it.
    """
    read = {}
    for flag, value in given.items():
        name = flag.replace("-", "_")
        if name in OWN_FLAGS:
            raise SoftshardsError(
                f"--engine-arg.{flag} has a flag of its own", hint=f"use {OWN_FLAGS[name]}"
            )
        if name in RESERVED:
            raise SoftshardsError(f"--engine-arg.{flag} cannot be set: labeling depends on it")
        read[name] = yaml.safe_load(value) if isinstance(value, str) else value
    return read


def identity_arguments(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments that can change labels; None if there are none."""
    return {n: v for n, v in engine_arguments(given).items() if n not in HARMLESS} or None
