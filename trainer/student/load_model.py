"""Load a causal language model from a folder, in float32; the dtype that the folder has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from schemas.errors import SoftshardsError, first_line
from schemas.json_values import read_object
from trainer.student.attention_ways import attention_implementation
from trainer.student.missing_weights import check_weights_loaded

disable_progress_bar()  # a bar of loaded tensors would only interrupt ours

LOAD_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    SafetensorError,
)
"""Errors that transformers raises for folders that it cannot load."""


DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""dtypes that models are saved in."""


def load_model(path: Path, *, from_config: bool = False, seed: int = 0) -> PreTrainedModel:
    """Load a causal LM in float32, or make one with random weights.

    Raises:
        SoftshardsError: the folder holds no model, transformers cannot load it, or the tensors are
            not those of its config.json.
    """
    check_model_folder(path)
    try:
        config = read_config(path)
        _check_quantization(path, config)
        _check_class(path, config)
        _check_alibi(path, config)
        try:
            return _load(path, config, attention_implementation(), from_config, seed)
        except ValueError as error:
            if "does not support an attention implementation" not in str(error):
                raise
            return _load(path, config, "eager", from_config, seed)
    except LOAD_ERRORS as error:
        reason = first_line(error)
        raise SoftshardsError(f"the model cannot be loaded: {reason}", path=path) from error


def _load(
    path: Path, config: PretrainedConfig, attention: str, from_config: bool, seed: int
) -> PreTrainedModel:
    model: PreTrainedModel
    if not from_config:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # the next line names them
            output_loading_info=True,
            trust_remote_code=False,
        )
        model, found = loaded
        check_weights_loaded(model, found, path)
        return model
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, trust_remote_code=False
    )
    model.float()
    return model


def read_config(path: Path) -> PretrainedConfig:
    """Read a model's config.json.

    Raises:
        SoftshardsError: the model needs code of its own, which the trainer never runs.
        ValueError: transformers cannot read it.
        OSError: transformers cannot read it.
    """
    try:
        # Without a value, transformers asks on the terminal whether to run the folder's code.
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise SoftshardsError(
            "the model needs code of its own (`auto_map` in config.json), which is never run here",
            path=path,
            hint="give a model whose architecture transformers knows",
        ) from error
    return config


def stored_dtype(path: Path) -> torch.dtype:
    """Return the dtype of a checkpoint: that of its config.json, else of its largest weight.

    float32, bfloat16 or float16; float32 for all others, and where there are no weights.

    Raises:
        SoftshardsError: a file cannot be read.
    """
    content: dict[str, Any] = read_object(path / "config.json")
    for part in (content, content.get("text_config")):
        if isinstance(part, dict) and (name := part.get("dtype") or part.get("torch_dtype")):
            return DTYPES.get(str(name).removeprefix("torch."), torch.float32)
    sizes: dict[str, int] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    weight = tensors.get_slice(name)
                    size = torch.Size(weight.get_shape()).numel()
                    sizes[weight.get_dtype()] = max(size, sizes.get(weight.get_dtype(), 0))
        except (SafetensorError, OSError) as error:
            what = f"the weights cannot be read: {first_line(error)}"
            raise SoftshardsError(what, path=file) from error
    largest = max(sizes, key=sizes.__getitem__, default="")
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(largest, torch.float32)


def check_model_folder(path: Path) -> None:
    """Check that a folder holds a model.

    Raises:
        SoftshardsError: it does not; the hint says where to get one.
    """
    if not (path / "config.json").is_file():
        raise SoftshardsError(
            "no model here: config.json is missing",
            path=path,
            hint="pass a local Hugging Face checkpoint folder (`hf download NAME --local-dir DIR`)",
        )


def _check_class(path: Path, config: PretrainedConfig) -> None:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SoftshardsError(
            f"the student is a {config.model_type}, which transformers does not load as a causal "
            "language model",
            path=path,
            hint="use a causal language model: for one that also reads images, a text-only "
            "checkpoint of its family",
        )


def _check_quantization(path: Path, config: PretrainedConfig) -> None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    raise SoftshardsError(
        f"the student is quantized ({method or 'by an unknown method'}) and cannot be trained",
        path=path,
        hint="use the checkpoint it was quantized from, or remove quantization_config from a "
        "config.json whose weights are plain",
    )


def _check_alibi(path: Path, config: PretrainedConfig) -> None:
    if config.model_type == "falcon" and getattr(config, "alibi", False):
        raise SoftshardsError(
            "the student is a Falcon with alibi, which eager attention of transformers adds twice "
            "and the other attentions once: its values depend on who runs it",
            path=path,
            hint="use a Falcon with rotary positions, such as Falcon3",
        )
