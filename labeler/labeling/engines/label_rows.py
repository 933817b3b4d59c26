"""Logits to label rows on the engine's device: the arithmetic inside vLLM's workers.

A row of logits is read from memory twice: for the largest logits, and for softmax over the others.
Everything else works on k numbers, or on a chunk of rows that is still in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

EXTRAS = ("tail_logprob", "entropy", "log_normalizer")
"""The values of a row after the actual token and the top-k."""
CHUNK_BYTES = {"cpu": 1 << 23}
"""Bytes of float32 logits in a chunk of rows, by device: a CPU's cache holds two such chunks."""
DEVICE_CHUNK_BYTES = 1 << 27
"""The same elsewhere: memory is bounded, and a GPU is busy with one chunk."""
FOLD = 8
"""Logits per group in `largest`."""
FEW = 32
"""`largest` sorts rows of up to k times this width directly."""
LOWEST = -1e30
"""Stands for -inf, which is no number when multiplied by 0: below any logit, exp of it is 0."""


def gather_rows(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    *,
    k: int,
    vocab_size: int,
    draws: int = 0,
    temperatures: Sequence[float] = (),
    asked: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return actual token, top-k of the real ids, exact tail, entropy, normalizer of n positions.

    Args:
        logits: [n, V], at T = 1. Float32 logits are overwritten.
        tokens: int64 [n], the actual tokens.
        k: ids to keep, at most `vocab_size`.
        vocab_size: number of real ids; those at or past it (padding of the head) are in the tail.
        draws: ids to draw per position (`schemas.draws`).
        temperatures: further temperatures T, to return the tail at.
        asked: int64 [n, m], ids to keep beside the top-k, unique within a row, padded with -1.

    Returns:
        ids int32 [n, 1 + k + m + draws] and values float32 [n, 1 + k + m + 3 + temperatures]: the
        actual token first, then the top-k in order, then the asked ids that are not among them, in
        order, ended by -1 and -inf; the drawn ids, ascending, at the end of the ids; `EXTRAS` and
        the tails at each T at the end of the values. A tail is the log of a sum over all other ids,
        never 1 - sum.
    """
    n, width = logits.shape
    chunk = max(1, CHUNK_BYTES.get(logits.device.type, DEVICE_CHUNK_BYTES) // (4 * width))
    kept = k + (0 if asked is None else asked.shape[1])
    ids = torch.empty(n, 1 + kept + draws, dtype=torch.int32, device=logits.device)
    values = torch.empty(n, 1 + kept + len(EXTRAS) + len(temperatures), device=logits.device)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        _fill(
            ids[rows],
            values[rows],
            logits[rows].float(),
            tokens[rows, None],
            k,
            vocab_size,
            temperatures=temperatures,
            asked=None if asked is None else asked[rows],
        )
    return ids, values


def _fill(
    ids: torch.Tensor,
    values: torch.Tensor,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    k: int,
    vocab_size: int,
    *,
    temperatures: Sequence[float],
    asked: torch.Tensor | None,
) -> None:
    """Fill the rows `ids` and `values` of `gather_rows` from one chunk of logits [n, V].

    The others (all ids but those kept) are normalized by their own largest logit, so their mass is
    exact however small it is. The normalizer is that of the kept ids and the others' log-sum.
    """
    token = logits.gather(1, tokens)
    ranked = largest(logits[:, :vocab_size], min(k + 1, vocab_size))
    kept_ids, next_ids = ranked[:, :k], ranked[:, k:]
    if vocab_size < logits.shape[1]:  # the padding's largest may be larger than all others
        padding = logits[:, vocab_size:].argmax(dim=1, keepdim=True) + vocab_size
        next_ids = torch.cat([next_ids, padding], dim=1)
    kept = logits.gather(1, kept_ids)
    candidates = torch.cat([kept[:, :1], logits.gather(1, next_ids)], dim=1)
    most = candidates.amax(dim=1, keepdim=True)
    where, stored = kept_ids, kept_ids
    if asked is not None:
        more, more_ids = _beside(asked, kept_ids, logits)
        kept = torch.cat([kept, more], dim=1)
        stored = torch.cat([kept_ids, more_ids], dim=1)
        where = stored.where(stored >= 0, kept_ids[:, :1])
    others = logits.scatter_(1, where, LOWEST).sub_(most).clamp_min_(LOWEST)
    shares = others.softmax(dim=1)
    # Sums of softmax are off by some 1e-6 where V is large, those of sum by less.
    total = shares.sum(dim=1, keepdim=True)
    log_sum = torch.full_like(most, -torch.inf)
    if next_ids.shape[1]:
        if asked is None:
            at = next_ids.gather(1, candidates[:, 1:].argmax(dim=1, keepdim=True))
        else:  # the next id may be kept, too
            at = others.argmax(dim=1, keepdim=True)
        largest_other = others.gather(1, at)
        log_sum = largest_other - (shares.gather(1, at) / total).log()
        log_sum = log_sum.where(largest_other > LOWEST, -torch.inf)
    logprobs = torch.cat([kept - most, log_sum], dim=1)
    # By log1p where the first id has all the mass: its logprob is minus what the others hold.
    log_total = logprobs[:, :1].logaddexp(logprobs[:, 1:].logsumexp(dim=1, keepdim=True))
    log_normalizer = most + log_total
    count = kept.shape[1]
    at_end = values[:, 1 + count + len(EXTRAS) :]
    for column, temperature in enumerate(temperatures):
        tempered = (others / temperature).logsumexp(dim=1, keepdim=True)
        tempered = tempered.where(log_sum > -torch.inf, -torch.inf)
        whole = torch.cat([logprobs[:, :count] / temperature, tempered], dim=1)
        at_end[:, column] = whole.log_softmax(dim=1)[:, -1]
    logprobs -= log_total
    mean = others.mul_(shares).sum(dim=1, keepdim=True) / total
    p = logprobs.exp()
    terms = logprobs.clamp_min(LOWEST)
    terms[:, count:] = mean - log_total
    ids[:, :1], ids[:, 1 : 1 + count] = tokens, stored
    draws = ids.shape[1] - 1 - count
    if draws:
        probabilities = shares.mul_(p[:, count:])
        if asked is not None:
            probabilities.scatter_(1, where[:, k:], p[:, k:count])  # padding first: 0
        probabilities.scatter_(1, kept_ids, p[:, :k])
        u = uniform(log_normalizer[:, 0], tokens[:, 0])
        ids[:, 1 + count :] = draw(probabilities[:, :vocab_size], u, draws)
    values[:, :1] = token - most - log_total
    values[:, 1 : 2 + count] = logprobs
    values[:, 2 + count] = -torch.linalg.vecdot(p, terms)
    values[:, 3 + count] = log_normalizer[:, 0]


def _beside(
    asked: torch.Tensor, top_ids: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and ids of the asked ids that are not among the top, in descending order.

    Returns:
        float32 and int64 [n, m], -inf and -1 at the end of rows with fewer.
    """
    new = (asked >= 0) & ~(asked[:, :, None] == top_ids[:, None, :]).any(dim=2)
    found = logits.gather(1, asked.clamp_min(0)).where(new, -torch.inf)
    # Ids that cannot occur (-inf) come before padding, so that no -1 stands among ids.
    order = torch.where(new, found.clamp_min(LOWEST), -torch.inf).argsort(dim=1, descending=True)
    return found.gather(1, order), asked.where(new, -1).gather(1, order)


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the ids int64 [n, k] of the k largest `values` [n, w], in descending order.

    As `topk`, and faster where w is large: the k largest lie in the k groups whose maxima are
    largest, and groups of every w/8-th value have their maxima taken without any sorting.
    """
    width = values.shape[1]
    if width <= FEW * k:
        return values.topk(k, dim=1).indices
    groups = width // FOLD
    maxima = values[:, : groups * FOLD].view(-1, FOLD, groups).amax(dim=1)
    every = torch.arange(0, groups * FOLD, groups, device=values.device)
    ids = (largest(maxima, k)[:, None, :] + every[:, None]).flatten(1)
    if groups * FOLD < width:
        left_over = torch.arange(groups * FOLD, width, device=values.device)
        ids = torch.cat([ids, left_over.expand(len(values), -1)], dim=1)
    return ids.gather(1, values.gather(1, ids).topk(k, dim=1).indices)


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
