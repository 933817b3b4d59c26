"""Importing vLLM and loading a model into it, quietly; telling out-of-memory errors from others."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from labeler.labeling.engines.vllm.vllm_environment import prepare_environment
from schemas import SoftshardsError


def import_vllm() -> Any:
    """Import vLLM and return the module.

    Raises:
        SoftshardsError: it is not installed, or its installation is broken.
    """
    prepare_environment()
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # torchao, where installed, warns about kernels for other machines, and torch about torchao.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import vllm
    except (ImportError, RuntimeError) as error:
        raise SoftshardsError(
            f"vLLM cannot be imported: {error}",
            hint="install the extra `gpu` or `cpu` of softshards, or pass --engine transformers",
        ) from error
    return vllm


def load_llm(vllm: Any, arguments: dict[str, Any]) -> Any:
    """Return `vllm.LLM(**arguments)`, without vLLM's warnings about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return vllm.LLM(**arguments)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or in the allocator of the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
