"""`--engine-arg`: which vLLM arguments have flags of their own, and which can change labels."""

from __future__ import annotations

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
OURS = ("logprobs_mode", "max_logprobs", "worker_extension_cls", "data_parallel_size")
"""What labeling itself depends on."""
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
"""Where and how fast the teacher runs, not what it computes (up to rounding): provenance only.
Whatever is not here is taken to change labels, and becomes part of the identity."""


def engine_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments by vLLM's names, with values read as YAML (`2` is a number, `{...}` a dict).

    Raises:
        SoftshardsError: an argument has a flag of its own, or labeling depends on it.
    """
    read = {}
    for flag, value in given.items():
        name = flag.replace("-", "_")
        if name in OWN_FLAGS:
            raise SoftshardsError(
                f"--engine-arg.{flag} has a flag of its own", hint=f"use {OWN_FLAGS[name]}"
            )
        if name in OURS:
            raise SoftshardsError(f"--engine-arg.{flag} cannot be set: labeling depends on it")
        read[name] = yaml.safe_load(value) if isinstance(value, str) else value
    return read


def identity_arguments(given: dict[str, Any]) -> dict[str, Any] | None:
    """Those of the arguments that can change labels; None where there are none."""
    return {n: v for n, v in engine_arguments(given).items() if n not in HARMLESS} or None
