"""The teacher as a folder on disk: its tokenizer and its identity; no weights are loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.config import LabelConfig
from schemas import Identity, SoftshardsError
from schemas.errors import first_line
from schemas.fingerprint import (
    TOKENIZER_FILES,
    sha256_file,
    sha256_json,
    tokenizer_digest,
    weights_digest,
)
from schemas.labelset import TOKENIZER
from schemas.manifest import FileDigest


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A checkpoint whose tokenizer is loaded and whose weights are not.

    Attributes:
        path: its folder.
        tokenizer: the transformers tokenizer.
        vocab_size: number of real token ids.
        context: longest sequence the model was made for, in tokens.
        dtype: dtype of the checkpoint, as torch names it.
        stop_ids: token ids that end a generation.
    """

    path: Path
    tokenizer: Any
    vocab_size: int
    context: int
    dtype: str
    stop_ids: tuple[int, ...]

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template, if it has one."""
        return self.tokenizer.chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that starts a sequence (BOS where the tokenizer adds it)."""
        return self.tokenizer.encode(text)

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that continues a sequence (no special tokens)."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def render_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of messages through the chat template, up to where the answer starts."""
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )


def open_teacher(path: Path, *, max_length: int) -> Teacher:
    """Load a teacher's tokenizer and configuration.

    Raises:
        SoftshardsError: the folder is no checkpoint, has no tokenizer, or a shorter context.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    mend = "give the folder of a Hugging Face causal LM with config.json, weights and tokenizer"
    if not (path / "config.json").is_file():
        raise SoftshardsError("not a model: config.json is missing", path=path, mend=mend)
    try:
        model_config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # broken files raise whatever their parser likes
        raise SoftshardsError(
            f"the model cannot be opened: {first_line(error)}", path=path, mend=mend
        ) from error
    text_config = model_config.get_text_config()
    context = int(getattr(text_config, "max_position_embeddings", None) or max_length)
    if max_length > context:
        raise SoftshardsError(
            f"--max-length {max_length} is more than the model's context of {context} tokens",
            path=path,
            mend=f"pass --max-length {context} or less",
        )
    stop_ids = [tokenizer.eos_token_id]
    if (path / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(path).eos_token_id
        stop_ids += eos if isinstance(eos, list) else [eos]
    return Teacher(
        path=path,
        tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        context=context,
        dtype=str(text_config.dtype or "float32").removeprefix("torch."),
        stop_ids=tuple(sorted({i for i in stop_ids if i is not None})),
    )


def teacher_identity(teacher: Teacher, config: LabelConfig) -> Identity:
    """All that decides what this teacher's labels will be.

    Raises:
        SoftshardsError: the checkpoint has no weights.
    """
    dtype = teacher.dtype if config.dtype == "auto" else config.dtype
    try:
        weights = weights_digest(teacher.path, full=config.weights_digest == "full")
    except FileNotFoundError as error:
        raise SoftshardsError(
            "the model has no weights: no *.safetensors and no *.bin", path=teacher.path
        ) from error
    templated = config.mode == "generate" and not config.raw_prompts and teacher.chat_template
    return Identity(
        weights=weights,
        weights_scope=config.weights_digest,
        model_config_digest=sha256_json(json.loads((teacher.path / "config.json").read_bytes())),
        tokenizer=tokenizer_digest(teacher.path),
        vocab_size=teacher.vocab_size,
        chat_template=sha256_json([teacher.chat_template, {}]) if templated else None,
        dtype=dtype,
        head_dtype="float32" if config.head_dtype == "float32" else dtype,
        quantization=config.quantization,
        mode=config.mode,
        k=min(config.k, teacher.vocab_size),
        max_length=config.max_length,
        overlap=config.overlap if config.mode == "score" else 0,
        sampling=config.sampling,
    )


def copy_tokenizer(teacher: Teacher, out: Path) -> tuple[FileDigest, ...]:
    """Copy the teacher's tokenizer files into a label set, so that no reader needs the teacher."""
    target = out / TOKENIZER
    target.mkdir(parents=True, exist_ok=True)
    copied = []
    for name in TOKENIZER_FILES:
        if (teacher.path / name).is_file():
            shutil.copyfile(teacher.path / name, target / name)
            path = f"{TOKENIZER}/{name}"
            copied.append(FileDigest(path=path, sha256=sha256_file(target / name)))
    return tuple(copied)
