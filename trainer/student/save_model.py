"""Write models as plain Hugging Face checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from schemas.atomic import atomic_directory
from schemas.fingerprint import TOKENIZER_FILES

KEPT_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
"""Files of the checkpoint that a model came from that no training changes."""


def save_model(
    model: PreTrainedModel,
    final: Path,
    *,
    source: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.float32,
    state: dict[str, Tensor] | None = None,
    json_files: Mapping[str, object] | None = None,
    folders: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write a checkpoint that transformers and vLLM load, atomically.

    Args:
        model: the causal LM, in float32.
        final: the folder to make, or to replace.
        source: the checkpoint that the model came from: KEPT_FILES are copied.
        tokenizer_dir: where to copy the tokenizer files from.
        dtype: of the weights written; what the model keeps in float32 stays so.
        state: the weights, where the model itself holds only a part of them (FSDP).
        json_files: file name -> JSON-able content to write beside the weights.
        folders: folder name -> function that makes this folder beside the weights.
    """
    with atomic_directory(final) as tmp:
        if dtype != torch.float32:
            state = _cast(model, model.state_dict() if state is None else state, dtype)
        own = model.generation_config
        if (source / KEPT_FILES[0]).is_file():
            model.generation_config = GenerationConfig()  # transformers refuses to write odd ones
        try:
            model.save_pretrained(tmp, state_dict=state)
        finally:
            model.generation_config = own
        _write_dtype(tmp / "config.json", dtype)
        copy_files(KEPT_FILES, source, tmp)
        copy_files(TOKENIZER_FILES, tokenizer_dir, tmp)
        for name, content in (json_files or {}).items():
            (tmp / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for name, write in (folders or {}).items():
            write(tmp / name)


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Copy those of some files that `source` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _cast(
    model: PreTrainedModel, state: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Round weights to a dtype, except what transformers always loads in float32; keep ties."""
    kept = {*(model._keep_in_fp32_modules_strict or ())}
    if dtype == torch.float16:
        kept |= {*(model._keep_in_fp32_modules or ())}
    cast: dict[tuple[int, torch.Size], Tensor] = {}

    def rounded(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or any(f".{part}." in f".{name}." for part in kept):
            return value
        place = (value.data_ptr(), value.shape)
        return cast.setdefault(place, value.to(dtype))

    return {name: rounded(name, value) for name, value in state.items()}


def _write_dtype(path: Path, dtype: torch.dtype) -> None:
    """Set the dtype in a config.json and its nested configurations."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    nested = [value for name, value in content.items() if name.endswith("_config")]
    for part in (content, *(value for value in nested if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
