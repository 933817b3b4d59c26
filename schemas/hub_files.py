"""The files of a model's repository that are needed: one copy of the weights, and small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from schemas.errors import SoftshardsError
from schemas.json_values import parse_object

SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
"""Suffixes of configuration, tokenizer, chat templates and the model's own code."""
INDEXES = {
    "model.safetensors.index.json": "model.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model.bin",
}
"""The index of weights in several files, and the weights in one file, in order of preference."""


def small_files(names: Iterable[str]) -> list[str]:
    """Return all files but the weights: configuration, tokenizer, templates, code."""
    return [name for name in names if name.endswith(SMALL) and _is_wanted_folder(name)]


def weight_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Return the files with the weights, each tensor once; empty where there are none.

    Copies in other formats are left out: `consolidated.safetensors`, `original/*.pth`, `*.gguf`,
    and `*.bin` where there are safetensors.

    Args:
        names: the repository's files.
        read: returns the content of one of them.

    Raises:
        SoftshardsError: the index of the weights is not one.
    """
    known = set(names)
    for index, single in INDEXES.items():
        if index in known:
            return _named_files(read(index), index)
        if single in known:
            return [single]
    top = sorted(name for name in known if name.endswith(".safetensors") and "/" not in name)
    return [n for n in top if not n.startswith(("adapter_model", "consolidated"))]


def _named_files(content: bytes, index: str) -> list[str]:
    """Return the files that an index of weights names, sorted."""
    try:
        files = parse_object(content)["weight_map"]
    except (ValueError, KeyError):
        files = None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise SoftshardsError("this is not an index of weights", path=index)
    return sorted(set(files.values()))


def _is_wanted_folder(name: str) -> bool:
    folder = PurePosixPath(name).parent.as_posix()
    return folder in (".", "additional_chat_templates") or name.endswith(".py")
