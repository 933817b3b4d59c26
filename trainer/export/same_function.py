"""Check that a student's GGUF file is the student's function: run both on the same tokens.

llama.cpp has its own code for each architecture. A setting of config.json that this code does not
read makes another function of the same weights, which nothing but its output shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import SoftshardsError
from trainer.export.held_out_rows import Answers, HeldOutRow
from trainer.student.attention_ways import set_attention
from trainer.student.context_check import context_length

TOKENS = 96
WIDEST_WINDOW = 1024
"""The tokens go past a sliding window of at most this size; a wider one is not checked."""
SAME = 0.05
"""Nats by which the log-probability of a token may differ in the mean. In float16 it was 0.007 or
less in most families tried, 0.03 to 0.05 in tiny GPT-OSS models, whose YaRN bounds llama.cpp rounds
(`truncate` is false there), and 0.26 or more in the three of which llama.cpp makes another one."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Tokens, and a student's log-probabilities of them.

    Attributes:
        row: the ids, and the positions that are compared.
        logprobs: float64, one per position, normalized over all rows of the head.
    """

    row: HeldOutRow
    logprobs: NDArray[np.float64]


def refuse_known_differences(config: PretrainedConfig, folder: Path) -> None:
    """Refuse the settings that llama.cpp is known not to read.

    Raises:
        SoftshardsError: config.json has one; says which.
    """
    text = config.get_text_config()
    kind, reason = text.model_type, None
    if kind == "qwen3_moe" and not text.norm_topk_prob:
        reason = "norm_topk_prob is false, and llama.cpp always normalizes the weights of experts"
    if reason:
        raise SoftshardsError(
            f"llama.cpp would compute another function: {reason}",
            path=folder / "config.json",
            hint="--to int8 exports for vLLM",
        )


@torch.no_grad()
def probe(model: PreTrainedModel) -> Probe:
    """Run a student on random tokens, one sequence; its attention becomes the eager one.

    Of transformers' ways to compute attention, it is the one that reads every setting: SDPA, for
    example, leaves out Gemma 2's cap of the scores.
    """
    set_attention(model, "eager")
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    wanted = TOKENS
    if isinstance(window, int) and window <= WIDEST_WINDOW:
        wanted = max(TOKENS, window + TOKENS // 2)
    length = min(wanted, context_length(model.config) or wanted)
    random = np.random.default_rng(SEED)
    ids = random.integers(0, text.vocab_size, length)
    logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    logp = logits.double().log_softmax(-1)
    positions = sorted({*range(1, length)[:TOKENS], *range(1, length)[-TOKENS:]})
    at = torch.tensor(positions)
    return Probe(
        row=HeldOutRow(tokens=ids.tolist(), positions=positions, teacher_top=[]),
        logprobs=logp[at - 1, torch.from_numpy(ids)[at]].numpy(),
    )


def check_same_function(probed: Probe, answers: Answers, folder: Path) -> None:
    """Compare a student with its file in 16 bits.

    Args:
        probed: the student's log-probabilities.
        answers: of llama.cpp to the same row.
        folder: the student's.

    Raises:
        SoftshardsError: the file is another function.
    """
    gap = float(np.abs(np.asarray(answers.logprobs) - probed.logprobs).mean())
    if not gap <= SAME:  # NaN is not
        raise SoftshardsError(
            "llama.cpp computes another function: log-probabilities differ by "
            f"{gap:.2g} nats in the mean, with the weights in 16 bits. It ignores a setting of "
            "config.json",
            path=folder,
            hint="a newer llama.cpp may know it (--llama-cpp DIR); --to int8 exports for vLLM",
        )
