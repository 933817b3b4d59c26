"""Facts of a checkpoint's configuration as vLLM takes them: dtype, context, stop ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labeler.labeling.teacher.engine_args import engine_arguments
from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.json_values import parse_json, parse_object

GENERATION = "generation_config.json"
CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Names of a configuration's context, as in vLLM; the smallest value counts."""
SCALED_ALREADY = (*("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"),)
"""Kinds of scaled RoPE whose `max_position_embeddings` is the scaled context."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes of weights by their names in safetensors."""


def trusts_code(engine_arg: Mapping[str, Any]) -> bool:
    """Return whether `--engine-arg.trust-remote-code` lets a checkpoint's own code run.

    Raises:
        SoftshardsError: its value is neither true nor false.
    """
    trusted = engine_arguments(engine_arg).get("trust_remote_code", False)
    if not isinstance(trusted, bool):
        raise SoftshardsError(f"--engine-arg.trust-remote-code is {trusted}; it is true or false")
    return trusted


def own_code(path: Path) -> str | None:
    """Return the file of a checkpoint that names code of its own (`auto_map`), if there is one."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            found = parse_json((path / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("auto_map"):
            return name
    return None


def model_context(config: Any) -> int | None:
    """Return the longest sequence in tokens, as vLLM does; None if the configuration names none.

    Linear and dynamic RoPE scale the context that the configuration names; for the other kinds it
    names the scaled one (vLLM 0.32, `_get_and_verify_max_len`).
    """
    text = config.get_text_config()
    named = [getattr(text, key, None) for key in CONTEXT_KEYS]
    lengths = [length for length in named if isinstance(length, int | float) and length > 0]
    if not lengths:
        return None
    context = getattr(text, "model_max_length", None) or min(lengths)
    factor = 1.0
    if "gemma3" not in text.model_type:  # its context is scaled already
        for rope in _ropes(text):
            if rope.get("rope_type", rope.get("type")) not in SCALED_ALREADY:
                factor = rope.get("factor", factor) or 1.0
    return int(context * factor)


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of RoPE, one dict per kind of layer where layers differ."""
    ropes = getattr(config, "rope_parameters", None)
    if not isinstance(ropes, dict):
        return
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]
    yield from nested or [ropes]


def model_dtype(config: Any, path: Path) -> str:
    """Return the dtype of a checkpoint by torch's name, as vLLM finds it.

    That is the one at the top of the configuration, else of its text part or another one, else of
    the weights, else float32.
    """
    parts = (
        *(config, config.get_text_config()),
        *(getattr(config, name, None) for name in ("vision_config", "encoder_config")),
    )
    for part in parts:
        if (dtype := getattr(part, "dtype", None)) is not None:
            return str(dtype).removeprefix("torch.")
    return _weights_dtype(path) or "float32"


def _weights_dtype(path: Path) -> str | None:
    found = set()
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            try:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
                tensors = [v for name, v in header.items() if name != "__metadata__"]
                found |= {DTYPES[v["dtype"]] for v in tensors if v["dtype"] in DTYPES}
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
                return None  # a damaged file, which the engine reports
    return found.pop() if len(found) == 1 else None


def generation_stop_ids(path: Path) -> list[int]:
    """Return the stop ids that a checkpoint's generation_config.json names.

    Raises:
        SoftshardsError: the file cannot be read, or its `eos_token_id` is no list of ids.
    """
    file = path / GENERATION
    if not file.is_file():
        return []
    hint = "repair it, or remove it: labeling needs only its eos_token_id"
    try:
        named: Any = parse_object(file.read_bytes()).get("eos_token_id")
    except (OSError, ValueError) as error:
        what = f"the file cannot be read: {first_line(error)}"
        raise SoftshardsError(what, path=file, hint=hint) from error
    ids = named if isinstance(named, list) else [named]
    ids = [token for token in ids if token is not None]
    if any(type(token) is not int or token < 0 for token in ids):
        what = f"its eos_token_id is {json.dumps(named)}, neither an id nor a list of ids"
        raise SoftshardsError(what, path=file, hint=hint)
    return ids
