"""Logits to label rows on the engine's own device: the arithmetic inside vLLM's workers."""

from __future__ import annotations

import torch

EXTRAS = ("tail_logprob", "entropy", "log_normalizer")
"""What a row has after the actual token and the top-k."""
ROWS_AT_ONCE = 128
"""Rows whose probabilities are held beside their log-probabilities: bounds the memory of extras."""


def normalizer(logits: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """float32 [n] with logits = logprobs + normalizer, from one column instead of a pass over V."""
    return logits[:, 0].float() - logprobs[:, 0]


def gather_rows(
    logprobs: torch.Tensor,
    log_normalizer: torch.Tensor,
    tokens: torch.Tensor,
    *,
    k: int,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actual token, top-k of the real ids, exact tail, entropy and normaliser of n positions.

    Args:
        logprobs: float32 [n, V], T = 1. Overwritten: its memory is used for the probabilities.
        log_normalizer: float32 [n].
        tokens: int64 [n], the actual tokens.
        k: ids to keep, at most `vocab_size`.
        vocab_size: number of real ids; those at or past it (padding of the head) are in the tail.

    Returns:
        ids int32 [n, 1 + k] and values float32 [n, 1 + k + 3]: the actual token first, then the
        top-k in order; `EXTRAS` at the end of the values. The tail is the log of a sum over all
        other ids, never 1 - sum.
    """
    top, ids = logprobs[:, :vocab_size].topk(k, dim=-1)
    token = logprobs.gather(1, tokens[:, None])
    tail = torch.empty_like(log_normalizer)
    entropy = torch.empty_like(log_normalizer)
    for start in range(0, len(logprobs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        some, some_ids = logprobs[rows], ids[rows]
        probabilities = some.exp()
        # 0 log 0 = 0; exp(-1e4) is 0 in float32.
        finite = some.clamp_min_(-1e4)
        entropy[rows] = -torch.linalg.vecdot(probabilities, finite)
        tail[rows] = probabilities.scatter_(1, some_ids, 0.0).sum(dim=-1).log()
        lost = torch.isneginf(tail[rows])
        if k < logprobs.shape[1] and bool(lost.any()):  # below float32's smallest probability
            others = finite[lost].scatter(1, some_ids[lost], -torch.inf)
            tail[rows][lost] = others.logsumexp(dim=-1)
    extras = torch.stack([tail, entropy, log_normalizer], dim=1)
    return (
        torch.cat([tokens[:, None], ids], dim=1).to(torch.int32),
        torch.cat([token, top, extras], dim=1),
    )
