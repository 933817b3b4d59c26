"""Write models as plain Hugging Face checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from schemas.atomic import atomic_directory
from schemas.fingerprint import TOKENIZER_FILES


def save_model(
    model: PreTrainedModel,
    final: Path,
    *,
    tokenizer_dir: Path,
    state: dict[str, Tensor] | None = None,
    json_files: Mapping[str, object] | None = None,
    folders: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write a checkpoint that transformers and vLLM load, atomically.

    Args:
        model: the causal LM.
        final: the folder to make, or to replace.
        tokenizer_dir: where to copy the tokenizer files from.
        state: the weights, where the model itself holds only a part of them (FSDP).
        json_files: file name -> JSON-able content to write beside the weights.
        folders: folder name -> function that makes this folder beside the weights.
    """
    with atomic_directory(final) as tmp:
        model.save_pretrained(tmp, state_dict=state)
        copy_tokenizer(tokenizer_dir, tmp)
        for name, content in (json_files or {}).items():
            (tmp / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for name, write in (folders or {}).items():
            write(tmp / name)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files that `source` has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
