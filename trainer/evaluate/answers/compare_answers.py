"""Figures of answers: means over prompts, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas import SoftshardsError
from trainer.evaluate.answers.answer_results import AnswerFigure
from trainer.evaluate.answers.read_answers import Answer, Answers, PromptKey
from trainer.evaluate.answers.text_metrics import OVERLAPS, Overlap, Words, distinct, refusals
from trainer.evaluate.bootstrap import document_counts, interval, to_text

SHARES = ("exact", "refusals", "truncated", "empty", "passed")
"""Figures that are shares of answers."""
OWN: dict[str, Callable[[Answer], float]] = {
    "tokens": lambda answer: float(answer.tokens),
    "repetition": lambda answer: answer.repetition,
    "truncated": lambda answer: float(answer.truncated),
    "empty": lambda answer: float(not answer.text.strip()),
}
"""Figures of an answer alone."""
DISTINCT = {"distinct1": 1, "distinct2": 2}

Values = NDArray[np.float64]
Figures = dict[str, AnswerFigure]


class Comparison(NamedTuple):
    """A student's answers beside those of the reference, on the prompts of both.

    Attributes:
        prompts: prompts that both have.
        answers: the student's answers to them.
        student: figures of the student's answers, and their overlap with the reference.
        teacher: figures of the reference's answers.
        differences: figures of the student minus those of the reference.
    """

    prompts: int
    answers: int
    student: Figures
    teacher: Figures
    differences: Figures


def compare(
    student: Mapping[PromptKey, Answers],
    reference: Mapping[PromptKey, Answers],
    overlap: Overlap,
    *,
    pattern: str | None,
    tick: Callable[[], None],
) -> Comparison:
    """Compare answers, prompt by prompt.

    Several answers to a prompt count as their mean, and the overlap with several answers of the
    reference as the mean over all pairs.

    Args:
        student: the answers.
        reference: the answers that they are compared with.
        overlap: the overlap of two texts.
        pattern: regular expression of refusals, in place of the project's.
        tick: called after each prompt.

    Raises:
        SoftshardsError: there is no common prompt, or an id stands for two prompts.
    """
    keys = sorted(student.keys() & reference.keys())
    _check_prompts(keys, student, reference)
    counts = document_counts([name for name, _ in keys])
    documents = len({name for name, _ in keys})

    def replicates(values: Values) -> Values:
        with np.errstate(invalid="ignore"):
            means: Values = counts.T @ values / counts.sum(0)
        return means

    def figures(columns: Mapping[str, Values]) -> Figures:
        return {
            name: _figure(float(values.mean()), replicates(values), documents)
            for name, values in columns.items()
        }

    overlaps = []
    for key in keys:
        pairs = [
            overlap(theirs.text, ours.text)
            for theirs, ours in product(reference[key].answers, student[key].answers)
        ]
        overlaps.append([float(np.mean([pair[name] for pair in pairs])) for name in OVERLAPS])
        tick()
    sides = [[side[key].answers for key in keys] for side in (student, reference)]
    mine, other = (_own(side, pattern) for side in sides)
    found = figures(dict(zip(OVERLAPS, np.array(overlaps).T)) | mine)
    lengths, base_lengths = (_characters(side) for side in sides)
    if base_lengths.any():
        with np.errstate(all="ignore"):
            ratios = replicates(lengths) / replicates(base_lengths)
        ratios[~np.isfinite(ratios)] = np.nan
        ratio = float(lengths.mean() / base_lengths.mean())
        found["length_ratio"] = _figure(ratio, ratios, documents)
    return Comparison(
        prompts=len(keys),
        answers=sum(map(len, sides[0])),
        student=found | _distinct(sides[0]),
        teacher=figures(other) | _distinct(sides[1]),
        differences=figures({n: mine[n] - other[n] for n in mine if n in other}),
    )


def _check_prompts(
    keys: Sequence[PromptKey],
    student: Mapping[PromptKey, Answers],
    reference: Mapping[PromptKey, Answers],
) -> None:
    if not keys:
        raise SoftshardsError(
            "the answers and the reference have no prompt in common",
            hint="label the same prompts, with the same ids, with teacher and student",
        )
    for key in keys:
        prompts = {student[key].prompt, reference[key].prompt} - {None}
        if len(prompts) > 1:
            raise SoftshardsError(
                "the prompt is another one in the reference", row=f"{key[0]}/{key[1]}"
            )


def _figure(value: float, replicates: Values, documents: int) -> AnswerFigure:
    bounds = interval(replicates, documents)
    known = (bounds.low, bounds.high) if np.isfinite(bounds).all() else None
    return AnswerFigure(value=value, interval=known, replicates=to_text(replicates))


def _own(prompts: Sequence[Sequence[Answer]], pattern: str | None) -> dict[str, Values]:
    """Return figures of the answers alone, by name: float64 [prompts]."""
    refused = iter(refusals([answer.text for answers in prompts for answer in answers], pattern))
    found = {
        name: np.array([np.mean([measure(answer) for answer in answers]) for answers in prompts])
        for name, measure in OWN.items()
    }
    found["refusals"] = np.array(
        [np.mean([next(refused) for _ in answers]) for answers in prompts], np.float64
    )
    verdicts = [[answer.verdict for answer in answers] for answers in prompts]
    known = [[v.passed for v in each if v is not None] for each in verdicts]
    if all(len(one) == len(each) for one, each in zip(known, verdicts)):
        found["passed"] = np.array([np.mean(each) for each in known], np.float64)
    return found


def _characters(prompts: Sequence[Sequence[Answer]]) -> Values:
    return np.array([np.mean([len(answer.text) for answer in answers]) for answers in prompts])


def _distinct(prompts: Sequence[Sequence[Answer]]) -> Figures:
    cut = Words()
    words = [cut.tokenize(answer.text) for answers in prompts for answer in answers]
    shares = {name: distinct(words, n) for name, n in DISTINCT.items()}
    return {n: AnswerFigure(value=share) for n, share in shares.items() if share is not None}
