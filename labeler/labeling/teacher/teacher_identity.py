"""The identity of the labels that a teacher gives under some settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.label_settings import recorded_settings
from labeler.labeling.teacher.engine_args import identity_arguments
from labeler.labeling.teacher.teacher import Teacher
from schemas import Identity, SoftshardsError
from schemas.file_names import FINAL
from schemas.fingerprint import sha256_json, tokenizer_digest, weights_digest
from schemas.json_values import read_object
from schemas.version import STATES_1, STATES_2


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights behind the labels.

    Attributes:
        digest: of the weights, or of what stands for them.
        scope: what the digest covers.
        max_logprobs: logprobs that can be read per position; None for the whole vocabulary.
    """

    digest: str
    scope: Literal["full", "header", "served"]
    max_logprobs: int | None = None


def local_weights(path: Path, scope: Literal["full", "header"]) -> Weights:
    """Return the weights in a checkpoint's folder.

    Args:
        path: the folder.
        scope: `full` reads and hashes all bytes; `header` only file sizes and headers.

    Raises:
        SoftshardsError: the checkpoint has no weights.
    """
    try:
        return Weights(digest=weights_digest(path, full=scope == "full"), scope=scope)
    except FileNotFoundError as error:
        raise SoftshardsError(
            "the model has no weights: no *.safetensors and no *.bin", path=path
        ) from error


def teacher_identity(teacher: Teacher, config: LabelConfig, weights: Weights) -> Identity:
    """Return all that decides the labels: the teacher, and the settings marked as identity.

    `chat_template` is set whenever the teacher has a template. Only the plan knows whether the
    input used it.
    """
    settings = recorded_settings(config, "identity")
    if config.mode == "generate":
        settings["overlap"] = 0
    if "top_p_labels" not in settings:
        settings.pop("min_k", None)
    dtype = teacher.dtype if config.dtype == "auto" else config.dtype
    settings["dtype"] = dtype
    settings["head_dtype"] = "float32" if config.head_dtype == "float32" else dtype
    settings["k"] = min(config.k, teacher.vocab_size, weights.max_logprobs or teacher.vocab_size)
    if config.state_layers:
        settings["states"] = _states(teacher, config)
    rendering = recorded_settings(config, "rendering")
    if "student_drop" in rendering:
        rendering["student_drop"] = sorted(set(config.student_drop))
    template = teacher.chat_template
    return Identity(
        **settings,
        weights=weights.digest,
        weights_scope=weights.scope,
        model_config_digest=sha256_json(read_object(teacher.path / "config.json")),
        tokenizer=tokenizer_digest(teacher.path),
        vocab_size=teacher.vocab_size,
        chat_template=sha256_json([template, config.template_arguments]) if template else None,
        sampling=config.sampling,
        rendering=rendering or None,
        engine_args=identity_arguments(config.engine_arg),
    )


def _states(teacher: Teacher, config: LabelConfig) -> str:
    """Return the layers and the codec of the hidden states to store.

    Raises:
        SoftshardsError: the teacher has no such layer.
    """
    for name in config.state_layers:
        number = name.removeprefix("layer_")
        if name != FINAL and teacher.layers is not None and int(number) >= teacher.layers:
            raise SoftshardsError(
                f"--states names layer {number}; the teacher's are 0 to {teacher.layers - 1}",
                path=teacher.path,
                hint="`final` is the last layer's output after the final norm",
            )
    codec = STATES_2 if config.state_kl else STATES_1
    return f"{','.join(config.state_layers)} {codec}"
