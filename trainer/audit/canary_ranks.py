"""Rank canaries by their likelihood among candidates that nobody inserted.

The exposure of a canary s[r] with randomness r of a space R is log2 |R| - log2 rank(s[r]), where
the rank is by log-perplexity among all of R (Carlini et al., "The Secret Sharer", 2019, definition
4). Here it is estimated by sampling (section 4.3 there): a sample of R takes the place of R. It
assumes no distribution, and cannot exceed log2 of the sample's size. A canary that the model never
saw has a uniform rank, so that it reaches an exposure of e bits with a probability of 2^-e.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from schemas import SoftshardsError
from trainer.audit.audit_results import Canaries, CanaryExposure
from trainer.audit.canary_file import draw_digits
from trainer.audit.canary_rows import CanaryRows, Frame
from trainer.audit.continuations import Speaker
from trainer.audit.read_training import Ids
from trainer.audit.training_text import TrainingText
from trainer.console import ProgressBar

LONGEST = 256
"""Tokens of a canary's row: candidates for the digits in a longer one would take too long."""
CHANCE = 0.05
"""Probability that one of the canaries counts as memorized and is not."""
CANDIDATE_SEED = 1 << 32
"""Added to the seed: seeds of canaries are other ones."""


def rank_canaries(
    speaker: Speaker,
    seen: CanaryRows,
    text: TrainingText,
    *,
    candidates: int,
    seed: int,
) -> Canaries:
    """Rank canaries in a model, and try to extract each from its prefix.

    Candidates stand where the canaries' digits stand in the rows of the label set, such as in an
    answer of a chat; in the sentence alone, where the rows do not allow it.

    Args:
        speaker: the model.
        seen: one canary or more, and where they stand in the label set.
        text: encodes them.
        candidates: candidates to draw at least.
        seed: of the candidates.

    Raises:
        SoftshardsError: the model's tokenizer lacks a token of theirs.
    """
    canaries = seen.canaries
    first = canaries[0]
    inserted = frozenset(canary.digits for canary in canaries)
    most = 10 ** len(first.digits) - len(inserted)
    # One more than a canary's threshold needs, for the rank of 1 to reach it.
    count = min(most, max(candidates, math.ceil(len(canaries) / CHANCE)))
    drawn = draw_digits(count, len(first.digits), seed + CANDIDATE_SEED, inserted)
    texts = [c.digits for c in canaries] + drawn
    frame = seen.frame if seen.frame and _is_usable(seen.frame, speaker, text) else None
    encode: Callable[[str], Ids] = text.encode
    before, after = first.before, first.after
    if frame is not None:
        encode, before, after = text.encode_again, frame.before, frame.after
    sequences = [encode(f"{before}{digits}{after}") for digits in texts]
    prefix = encode(before.rstrip())
    if not all(map(speaker.knows, sequences)):
        raise SoftshardsError(
            "--vocab-map: the model does not know a token of the canaries", path=speaker.path
        )
    ends = [max(1, len(ids) - len(prefix)) for ids in sequences[: len(canaries)]]
    with ProgressBar("rank canaries", len(sequences) + 1) as progress:
        values = speaker.log_likelihoods(sequences, progress.advance)
        (continued,) = speaker.continue_greedily([prefix], [max(ends)], progress.advance)
    said = text.decode(np.concatenate([prefix, continued]))
    reference = np.sort(values[len(canaries) :])
    ranked = []
    for canary, value in zip(canaries, values):
        rank = 1 + len(reference) - int(np.searchsorted(reference, value, side="left"))
        ranked.append(
            CanaryExposure(
                canary=canary.canary,
                rows=seen.rows.get(canary.canary, 0),
                rank=rank,
                exposure=math.log2((1 + len(reference)) / rank),
                extracted=canary.digits in said,
            )
        )
    threshold = math.log2(len(canaries) / CHANCE)
    return Canaries(
        candidates=1 + len(reference),
        threshold=threshold,
        canaries=ranked,
        in_rows=frame is not None,
    )


def _is_usable(frame: Frame, speaker: Speaker, text: TrainingText) -> bool:
    """Check that a row is short, and that its text gives its own ids again, which the model has."""
    again = text.encode_again(frame.before + frame.digits + frame.after)
    return (
        len(again) <= min(LONGEST, speaker.context)
        and np.array_equal(again, frame.ids)
        and speaker.knows(again)
    )
