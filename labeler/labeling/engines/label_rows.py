"""Logits to label rows on the engine's device: the arithmetic inside vLLM's workers."""

from __future__ import annotations

import torch

EXTRAS = ("tail_logprob", "entropy", "log_normalizer")
"""The values of a row after the actual token and the top-k."""
ROWS_AT_ONCE = 128
"""Rows whose probabilities are held beside their log-probabilities, to bound memory."""


def normalizer(logits: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """Return float32 [n] with logits = logprobs + normalizer, read from one column."""
    return logits[:, 0].float() - logprobs[:, 0]


def gather_rows(
    logprobs: torch.Tensor,
    log_normalizer: torch.Tensor,
    tokens: torch.Tensor,
    *,
    k: int,
    vocab_size: int,
    draws: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return actual token, top-k of the real ids, exact tail, entropy, normalizer of n positions.

    Args:
        logprobs: float32 [n, V], T = 1. Overwritten: its memory is used for the probabilities.
        log_normalizer: float32 [n].
        tokens: int64 [n], the actual tokens.
        k: ids to keep, at most `vocab_size`.
        vocab_size: number of real ids; those at or past it (padding of the head) are in the tail.
        draws: ids to draw per position (`schemas.draws`).

    Returns:
        ids int32 [n, 1 + k + draws] and values float32 [n, 1 + k + 3]: the actual token first, then
        the top-k in order; the drawn ids, ascending, at the end of the ids, and `EXTRAS` at the end
        of the values. The tail is the log of a sum over all other ids, never 1 - sum.
    """
    top, ids = logprobs[:, :vocab_size].topk(k, dim=-1)
    token = logprobs.gather(1, tokens[:, None])
    tail = torch.empty_like(log_normalizer)
    entropy = torch.empty_like(log_normalizer)
    drawn = ids.new_empty(len(ids), draws)
    for start in range(0, len(logprobs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        some, some_ids = logprobs[rows], ids[rows]
        probabilities = some.exp()
        if draws:
            u = uniform(log_normalizer[rows], tokens[rows])
            drawn[rows] = draw(probabilities[:, :vocab_size], u, draws)
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
        torch.cat([tokens[:, None], ids, drawn], dim=1).to(torch.int32),
        torch.cat([token, top, extras], dim=1),
    )


def draw(probabilities: torch.Tensor, u: torch.Tensor, draws: int) -> torch.Tensor:
    """Draw ids systematically in proportion to `probabilities` [n, V]: int64 [n, draws], ascending.

    Args:
        u: float32 [n], uniform in [0, 1).
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    steps = torch.arange(draws, device=u.device, dtype=u.dtype)
    at = (steps + u[:, None]) / draws * total
    at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))  # rounding: below it
    return torch.searchsorted(cumulative, at, right=True)


def uniform(log_normalizer: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return a number in [0, 1) per position, float32 [n]: a hash of its normalizer and token.

    No generator is used: its numbers would depend on which positions share a step, so a resumed
    run would draw others. The mixing function is SplitMix64's (Steele, Lea and Flood 2014).
    """
    x = log_normalizer.contiguous().view(torch.int32).long() ^ (tokens.long() << 32)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shifted(x, shift)) * factor
    return _shifted(x ^ _shifted(x, 31), 40).float() / 2**24


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x >> bits, filled with zeros: torch has no unsigned shift of 64 bits."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
