"""The teacher as a folder on disk: its tokenizer and its identity; no weights are loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.engine_args import identity_arguments
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

    @property
    def eos_id(self) -> int:
        """The tokenizer's EOS token.

        Raises:
            SoftshardsError: it has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise SoftshardsError(
                "the tokenizer has no EOS token", path=self.path, hint="leave out --append-eos"
            )
        return self.tokenizer.eos_token_id

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Tokens that are markup rather than text."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in added if token.special)

    @cached_property
    def stop_tokens(self) -> tuple[str, ...]:
        """The tokens of `stop_ids` as text."""
        return tuple(self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that starts a sequence, with BOS once where the tokenizer adds it."""
        ids = self.tokenizer.encode(text)
        bos = self.tokenizer.bos_token_id
        twice = bos is not None and ids[:2] == [bos, bos]  # the text began with it, too
        return ids[1:] if twice else ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that starts a sequence and is to be continued: no EOS is added."""
        ids, more = self.encode(text), self.encode_more(text)
        added = ids[len(ids) - len(more) - 1 :] == [*more, self.tokenizer.eos_token_id]
        return ids[:-1] if added and len(ids) > len(more) else ids

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that continues a sequence (no special tokens)."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without special tokens, and the characters (start, stop) that each stands for.

        Raises:
            SoftshardsError: the tokenizer is none that knows.
        """
        encoding = self._offsets_tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def _offsets_tokenizer(self) -> Any:
        """The tokenizer without its post-processor, which may cut blanks off the offsets."""
        from tokenizers import Tokenizer

        if not self.tokenizer.is_fast:
            raise SoftshardsError(
                "chats need a fast tokenizer: this one does not say which characters a token is",
                path=self.path,
                hint="convert it to tokenizer.json, or give prompt and completion, or token ids",
            )
        plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        plain.post_processor = None
        plain.no_truncation()
        plain.no_padding()
        return plain


def open_teacher(path: Path, *, max_length: int, chat_template: Path | None = None) -> Teacher:
    """Load a teacher's tokenizer and configuration.

    Args:
        path: its folder.
        max_length: longest sequence that it is to see.
        chat_template: Jinja file that replaces the tokenizer's own template.

    Raises:
        SoftshardsError: the folder is no checkpoint, has no tokenizer, or a shorter context; or
            the template cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    hint = "give the folder of a Hugging Face causal LM with config.json, weights and tokenizer"
    if not (path / "config.json").is_file():
        raise SoftshardsError("not a model: config.json is missing", path=path, hint=hint)
    try:
        model_config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # broken files raise whatever their parser likes
        raise SoftshardsError(
            f"the model cannot be opened: {first_line(error)}", path=path, hint=hint
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    text_config = model_config.get_text_config()
    context = int(getattr(text_config, "max_position_embeddings", None) or max_length)
    if max_length > context:
        raise SoftshardsError(
            f"--max-length {max_length} is more than the model's context of {context} tokens",
            path=path,
            hint=f"pass --max-length {context} or less",
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


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SoftshardsError(
            f"the chat template cannot be read: {first_line(error)}",
            path=path,
            hint="check --chat-template",
        ) from error


def template_arguments(config: LabelConfig) -> dict[str, Any]:
    """What the chat template is given beside the chat, by the template's names.

    Values from the command line that are JSON are read as such: `false` is not a text.
    """
    arguments = {n.replace("-", "_"): _read_json(v) for n, v in config.template_kwargs.items()}
    return arguments | ({} if config.thinking is None else {"enable_thinking": config.thinking})


def _read_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


def teacher_identity(teacher: Teacher, config: LabelConfig) -> Identity:
    """All that decides what this teacher's labels will be.

    `chat_template` is filled in wherever the teacher has a template: only the plan knows whether
    the input made use of it.

    Raises:
        SoftshardsError: the checkpoint has no weights, or the server that has them does not answer.
    """
    dtype = teacher.dtype if config.dtype == "auto" else config.dtype
    template = teacher.chat_template
    nucleus = config.top_p_labels < 1
    return Identity(
        **_weights(teacher, config),
        model_config_digest=sha256_json(json.loads((teacher.path / "config.json").read_bytes())),
        tokenizer=tokenizer_digest(teacher.path),
        vocab_size=teacher.vocab_size,
        chat_template=sha256_json([template, template_arguments(config)]) if template else None,
        dtype=dtype,
        head_dtype="float32" if config.head_dtype == "float32" else dtype,
        quantization=config.quantization,
        mode=config.mode,
        max_length=config.max_length,
        overlap=config.overlap if config.mode == "score" else 0,
        sampling=config.sampling,
        engine_args=identity_arguments(config.engine_arg),
        top_p_labels=config.top_p_labels if nucleus else None,
        min_k=config.min_k if nucleus and config.min_k > 1 else None,
        draws=config.draws or None,
        spans=None if config.spans == "assistant" else config.spans,
        rendering=_rendering_rules(config),
    )


def _rendering_rules(config: LabelConfig) -> dict[str, Any] | None:
    """The rules of rendering that are not at their default; None where all are."""
    rules = {
        "too_long": config.too_long if config.too_long != "chunk" else None,
        "append_eos": config.append_eos or None,
        "student_drop": sorted(set(config.student_drop)) or None,
    }
    return {name: value for name, value in rules.items() if value is not None} or None


def _weights(teacher: Teacher, config: LabelConfig) -> dict[str, Any]:
    """Which weights, and how many of their logprobs a position can be had."""
    if config.engine == "served":
        from labeler.labeling.engines.served.client import served_weights

        return served_weights(teacher, config)
    try:
        weights = weights_digest(teacher.path, full=config.weights_digest == "full")
    except FileNotFoundError as error:
        raise SoftshardsError(
            "the model has no weights: no *.safetensors and no *.bin", path=teacher.path
        ) from error
    return {
        "weights": weights,
        "weights_scope": config.weights_digest,
        "k": min(config.k, teacher.vocab_size),
    }


def copy_tokenizer(teacher: Teacher, out: Path) -> tuple[FileDigest, ...]:
    """Copy the teacher's tokenizer files into a label set, so that no reader needs the teacher."""
    return copy_tokenizer_files(teacher.path, out)


def copy_tokenizer_files(folder: Path, out: Path) -> tuple[FileDigest, ...]:
    """Copy a folder's tokenizer files into a label set, and say which they are."""
    target = out / TOKENIZER
    target.mkdir(parents=True, exist_ok=True)
    copied = []
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
            path = f"{TOKENIZER}/{name}"
            copied.append(FileDigest(path=path, sha256=sha256_file(target / name)))
    return tuple(copied)
