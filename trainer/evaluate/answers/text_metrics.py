"""Metrics of texts: overlap of two answers, words, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import polars as pl
from polars.exceptions import PolarsError

from schemas import SoftshardsError
from schemas.errors import first_line
from schemas.refusals import is_refusal

OVERLAPS = ("exact", "chrf", "rouge1", "rouge2", "rougeL")
ROUGE = ("rouge1", "rouge2", "rougeL")
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
WORDS = rf"[{_SPACELESS}]|[\p{{L}}\p{{N}}\p{{M}}--[{_SPACELESS}]]+"
"""A word of ROUGE and distinct-n: in scripts without spaces, each character is one.

rouge-score's own words are `[a-z0-9]+`, which leaves nothing of Chinese. On ASCII both are equal.
"""


class Overlap:
    """Overlap of two texts, each from 0 to 1.

    Raises:
        SoftshardsError: sacrebleu or rouge-score is not installed.
    """

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
            from sacrebleu.metrics.chrf import CHRF
        except ModuleNotFoundError as error:
            raise SoftshardsError(
                f"{error.name} is not installed", hint="pip install 'softshards[answers]'"
            ) from error
        self._chrf = CHRF()
        self._rouge = RougeScorer(ROUGE, tokenizer=Words())

    def __call__(self, reference: str, text: str) -> dict[str, float]:
        """Return `OVERLAPS` of a text with a reference; two empty texts overlap wholly."""
        reference, text = reference.strip(), text.strip()
        if not reference and not text:
            return dict.fromkeys(OVERLAPS, 1.0)
        rouge = self._rouge.score(reference, text)
        chrf = self._chrf.sentence_score(text, [reference]).score / 100
        return {
            "exact": float(reference == text),
            "chrf": chrf,
            **{name: float(rouge[name].fmeasure) for name in ROUGE},
        }


class Words:
    """Cuts texts into words, for rouge-score."""

    def __init__(self) -> None:
        import regex  # sacrebleu needs it

        self._words = regex.compile(WORDS, regex.VERSION1)

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, in lower case."""
        found: list[str] = self._words.findall(text.lower())
        return found


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Return the share of distinct n-grams among all of some texts; None if there are none.

    (Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016.)

    Args:
        texts: words of each text.
        n: 1 or 2.
    """
    grams = [gram for words in texts for gram in (words if n == 1 else pairwise(words))]
    return len(set(grams)) / len(grams) if grams else None


def refusals(texts: Sequence[str], pattern: str | None) -> list[bool]:
    """Return which answers are refusals, by the rule of `labeler curate`.

    Args:
        texts: the answers.
        pattern: the user's regular expression, searched in whole answers.

    Raises:
        SoftshardsError: it is none.
    """
    column = pl.col("answer")
    found = is_refusal(column) if pattern is None else column.str.contains(pattern)
    answers = pl.DataFrame({"answer": texts}, schema={"answer": pl.String})
    try:
        return answers.select(found.alias("found"))["found"].to_list()
    except PolarsError as error:
        raise SoftshardsError(
            f"--refusal-pattern {pattern!r} is not a regular expression: {first_line(error)}",
            hint="the syntax is Rust's `regex`: no look-around, no back-references",
        ) from error
