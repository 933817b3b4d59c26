"""Answers of a label set, by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas import LabelSet, SoftshardsError
from schemas.labeled_spans import labeled_tokens
from schemas.ngrams import repetition
from schemas.verdicts import RowVerdict

NGRAM = 4
"""n of the repeated n-grams, as in the column `repetition` of `labeler curate`."""
COLUMNS = (
    *("id", "chunk", "sample", "prompt", "generation"),
    *("finish_reason", "input_ids", "spans"),
)
PromptKey = tuple[str, int]
"""id and chunk of a prompt; its answers differ in `sample`."""


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: the answer.
        tokens: its length in tokens of its model.
        truncated: whether it ended at the limit of tokens.
        repetition: share of repeated n-grams of tokens.
        verdict: the user's verdict, if there is one.
    """

    text: str
    tokens: int
    truncated: bool
    repetition: float
    verdict: RowVerdict | None = None


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt, in the order of their samples."""

    prompt: str | None
    answers: tuple[Answer, ...]


def read_answers(
    labels: LabelSet, verdicts: Mapping[tuple[str, int, int], RowVerdict]
) -> dict[PromptKey, Answers]:
    """Return the answers of a label set.

    Raises:
        SoftshardsError: it holds rows that are no answers.
        LabelSetError: a shard is altered.
    """
    found: dict[PromptKey, dict[int, tuple[str | None, Answer]]] = {}
    thinned = labels.manifest.identity.keep_positions is not None
    for group in labels.row_groups:
        for row in labels.read_row_group(group, COLUMNS).to_pylist():
            if row["generation"] is None:
                raise SoftshardsError(
                    "the row is no answer: it has no generation",
                    path=labels.place,
                    row=row["id"],
                    hint="make answers with `labeler label --mode generate`",
                )
            key, sample = (row["id"], row["chunk"]), row["sample"]
            ids = labeled_tokens(row["input_ids"], row["spans"], thinned=thinned)
            answer = Answer(
                text=row["generation"],
                tokens=len(ids),
                truncated=row["finish_reason"] == "length",
                repetition=repetition(ids, NGRAM),
                verdict=verdicts.get((*key, sample)),
            )
            found.setdefault(key, {})[sample] = (row["prompt"], answer)
    return {
        key: Answers(
            prompt=next(prompt for prompt, _ in samples.values()),
            answers=tuple(answer for _, (_, answer) in sorted(samples.items())),
        )
        for key, samples in found.items()
    }
