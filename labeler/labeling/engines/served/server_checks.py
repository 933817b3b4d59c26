"""Checks of a served teacher before the first label: its answers to one short text.

A server says little about itself, and wrong labels look like right ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labeler.labeling.engines.served.responses import Rows
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.teacher.teacher import Teacher
from schemas import Sampling, SoftshardsError

PROBE = "The Ωmega of 1,234 naïve tokens:\n\n    return f(x)[0] != 'überall'  # ende\t"
"""Two tokenizers turn this into the same ids only if they are the same, or nearly."""
PLAIN = Sampling(temperature=1.0, max_tokens=1)
SHARPENED = Sampling(temperature=2.0, top_p=0.01, max_tokens=1)
"""Two ways to sample a token: raw logprobs are equal in both, processed ones differ."""
SAME_NATS = 0.5
"""Two runs of one prompt in a 16-bit dtype differ less; a cut distribution differs infinitely."""
LEAST_TOP = 5
"""Minimum logprobs to request per position, so that both answers hold the two most likely."""


def require_abilities(config: LabelConfig, card: dict[str, Any]) -> None:
    """Refuse settings that the server cannot fulfill.

    Args:
        config: the settings.
        card: the model card (`client.model_card`).

    Raises:
        SoftshardsError: a setting does not fit the server.
    """
    if config.server_api == "openai" and (config.min_p or config.structured):
        raise SoftshardsError(
            "an OpenAI-style server supports neither --min-p nor --structured",
            path=config.server_url,
            hint="leave them out, or pass --server-api vllm",
        )
    if config.engine_arg:
        raise SoftshardsError(
            "--engine-arg has no effect on a running server",
            path=config.server_url,
            hint="start the server with it",
        )
    scores = config.mode == "score" or bool(config.structured)
    needed = config.max_length + (1 if scores else 0)
    if (card["max_model_len"] or needed) < needed:
        raise SoftshardsError(
            f"the server's context is {card['max_model_len']} tokens, --max-length "
            f"{config.max_length} needs {needed}",
            path=config.server_url,
            hint=f"start it with --max-model-len {needed}, or lower --max-length",
        )


def head_size(teacher: Teacher) -> int:
    """Return the rows of the output projection from config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        teacher.path, trust_remote_code=teacher.trust_code
    ).get_text_config()
    return max(teacher.vocab_size, int(getattr(config, "vocab_size", 0)))


def check_tokens(ours: list[int], theirs: list[int], url: str | None) -> None:
    """Refuse a server whose tokenizer turns the probe into other ids than the teacher's.

    Raises:
        SoftshardsError: the ids differ.
    """
    if ours != theirs:
        raise SoftshardsError(
            f"the server's tokenizer is not the teacher's: it encodes a text as {theirs[:6]}..., "
            f"the teacher's as {ours[:6]}...",
            path=url,
            hint="give the folder of the served model with --model, or the right --served-model",
        )


def check_scores(rows: Rows, head_dtype: str, url: str | None) -> None:
    """Refuse scores that are no logprobs, or come from a 16-bit head where float32 is recorded.

    Args:
        rows: ids and logprobs [n, 1 + k] of the probe.
        head_dtype: of the label set's identity.
        url: the server's.

    Raises:
        SoftshardsError: the scores are refused.
    """
    top = rows[1][:, 1:].astype(np.float64)
    if (top > 1e-6).any() or (np.exp(top).sum(axis=1) > 1.001).any():
        raise SoftshardsError(
            "the server's scores are not logprobs: their mass is more than one",
            path=url,
            hint="start the server with --logprobs-mode raw_logprobs",
        )
    if head_dtype == "float32" and on_half_grid(top):
        raise SoftshardsError(
            "the server's output projection runs in 16 bits, --head-dtype is float32",
            path=url,
            hint='start the server with --hf-overrides \'{"head_dtype": "float32"}\', or pass '
            "--head-dtype model",
        )


def on_half_grid(top: np.ndarray[Any, Any]) -> bool:
    """Return whether logits were rounded to 16 bits, judging by differences of logprobs.

    bfloat16 and float16 numbers of 1 or more are multiples of 1/1024, and so are their differences.
    Of the differences of other numbers, 1 in 12 is as close to a multiple as float32 can tell.

    Args:
        top: logprobs [n, k], in order.
    """
    steps = (top[:, 1:] - top[:, :1])[np.isfinite(top[:, 1:])] * 1024
    near = np.abs(steps - np.round(steps)) < 0.04
    return len(steps) > 0 and near.mean() > 0.5


def check_raw(plain: dict[str, float], sharpened: dict[str, float], url: str | None) -> None:
    """Refuse logprobs of generated tokens that depend on how the token was sampled.

    Args:
        plain: token and logprob of the most likely tokens, sampled as PLAIN.
        sharpened: the same position, sampled as SHARPENED.
        url: the server's.

    Raises:
        SoftshardsError: the logprobs differ.
    """
    first = sorted(plain, key=lambda token: -plain[token])[:2]
    if any(abs(plain[token] - sharpened.get(token, -np.inf)) > SAME_NATS for token in first):
        raise SoftshardsError(
            "the server's logprobs of generated tokens change with the temperature: they are not "
            "the raw logprobs at T = 1",
            path=url,
            hint="start the server with --logprobs-mode raw_logprobs; if it has no such option, "
            "generate elsewhere and score here",
        )
