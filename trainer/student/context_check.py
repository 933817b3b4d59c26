"""Check that rows are no longer than the context of a student."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from schemas.errors import SoftshardsError
from schemas.labelset import LabelSet
from trainer.data.dataset import LabelDataset
from trainer.student.layers import model_body
from trainer.student.packing_check import part_of
from trainer.student.student import Student

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names that configurations have for it."""


def context_length(config: PretrainedConfig) -> int | None:
    """Return the tokens that a configuration is made for; None if there is no limit."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def longest_row(labels: LabelSet, student: Student) -> int:
    """Return the tokens of the longest row that a student would be run on."""
    anything = 2**31
    rows = LabelDataset(labels, pack_tokens=anything, vocab_map=student.vocab_map)
    return rows.count().longest


@torch.no_grad()
def check_context(student: Student, longest: int) -> str | None:
    """Check the longest row against the student's context; must be called on the CPU.

    Models with a table of positions fail on longer rows: one token too many is tried. Relative
    positions (RoPE, ALiBi) continue past the context, in a range that the model was not made for.

    Returns:
        A warning, or None where the rows fit.

    Raises:
        SoftshardsError: the student cannot be run on rows of this length.
    """
    context = context_length(student.model.config)
    if context is None or longest <= context:
        return None
    attention = student.model.config._attn_implementation
    # Flash attention does not run on a CPU.
    model = part_of(student, "sdpa" if attention == "flash_attention_2" else attention).model
    try:
        model_body(model)(input_ids=torch.zeros(1, context + 1, dtype=torch.long), use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        raise SoftshardsError(
            f"the longest row has {longest} tokens, and the student, a {type(model).__name__}, has "
            f"{context} positions",
            hint=f"label with --max-length {context} or less (`labeler label`), leave longer rows "
            "out (`labeler curate`), or use a student with a longer context",
        ) from error
    return (
        f"the longest row has {longest} tokens, the student's context {context} "
        "(max_position_embeddings): these are positions that it was not made for"
    )
