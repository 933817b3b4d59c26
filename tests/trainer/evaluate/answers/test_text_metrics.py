from __future__ import annotations

import random

import pytest

from schemas import SoftshardsError
from trainer.evaluate.answers.text_metrics import Overlap, Words, distinct, refusals

sacrebleu = pytest.importorskip("sacrebleu")
scorer = pytest.importorskip("rouge_score.rouge_scorer")
KINDS = ["rouge1", "rouge2", "rougeL"]
VOCABULARY = ["the", "cat", "sat", "on", "it's", "3.5", "Don't", "x_y", "42%", "(no)", "YES"]


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(1, 30))) for _ in range(count)]


def test_english_equals_sacrebleu_and_rouge_score() -> None:
    overlap = Overlap()
    direct = scorer.RougeScorer(KINDS)
    texts = random_texts(60)
    for reference, text in zip(texts[:30], texts[30:]):
        found = overlap(reference, text)
        chrf = sacrebleu.sentence_chrf(text, [reference]).score / 100
        assert found["chrf"] == pytest.approx(chrf, abs=1e-12)
        for kind, score in direct.score(reference, text).items():
            assert found[kind] == pytest.approx(score.fmeasure, abs=1e-12), kind
        assert found["exact"] == float(reference == text)


def test_rouge_by_hand() -> None:
    found = Overlap()("a b c d", "a c d x y")
    assert found["rouge1"] == pytest.approx(2 * 3 / (4 + 5))
    assert found["rouge2"] == pytest.approx(2 * 1 / (3 + 4))
    assert found["rougeL"] == pytest.approx(2 * 3 / (4 + 5))


def test_scripts_without_spaces_have_words() -> None:
    assert Words().tokenize("Hello, World_x 你好。ไทย Café कि") == (
        ["hello", "world", "x", "你", "好", "ไ", "ท", "ย", "café", "कि"]
    )
    assert scorer.RougeScorer(["rouge1"]).score("你好", "你好")["rouge1"].fmeasure == 0.0
    found = Overlap()("今天天气很好", "今天天气不好")
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [("", "", 1.0), ("a b", "", 0.0), ("", "a b", 0.0), (" a b\n", "a b", 1.0), ("!!", "!!", None)],
)
def test_empty_answers_and_space_around_them(
    reference: str, text: str, expected: float | None
) -> None:
    found = Overlap()(reference, text)
    if expected is None:  # no word: ROUGE finds nothing, the characters are equal
        assert (found["exact"], found["chrf"], found["rouge1"]) == (1.0, 1.0, 0.0)
    elif reference == text == "" or expected == 0.0:
        assert set(found.values()) == {expected}
    else:
        assert found["exact"] == 1.0


def test_distinct_by_hand() -> None:
    texts = [["a", "b", "a"], ["a", "b"], []]
    assert distinct(texts, 1) == pytest.approx(2 / 5)
    assert distinct(texts, 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct([[], []], 1) is None
    assert distinct([["a"]], 2) is None


def test_refusals() -> None:
    texts = ["I'm sorry, but I cannot help with that.", "Sure: 1 + 1 = 2.", "", "NO WAY"]
    assert refusals(texts, None) == [True, False, False, False]
    assert refusals(texts, "(?i)^no") == [False, False, False, True]
    assert refusals([], None) == []
    with pytest.raises(SoftshardsError, match="not a regular expression"):
        refusals(texts, "(")
