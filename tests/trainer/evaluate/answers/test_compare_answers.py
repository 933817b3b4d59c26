from __future__ import annotations

import numpy as np
import pytest

from schemas import SoftshardsError
from schemas.verdicts import RowVerdict
from trainer.evaluate.answers.compare_answers import Comparison, compare
from trainer.evaluate.answers.read_answers import Answer, Answers, PromptKey
from trainer.evaluate.answers.text_metrics import Overlap
from trainer.evaluate.bootstrap import document_counts, from_text

pytest.importorskip("sacrebleu")
Given = dict[PromptKey, Answers]


def answer(text: str, *, passed: bool | None = None, tokens: int = 5, **other: object) -> Answer:
    verdict = None if passed is None else RowVerdict(id="x", passed=passed)
    fields: dict[str, object] = {"truncated": False, "repetition": 0.0} | other
    return Answer(text=text, tokens=tokens, verdict=verdict, **fields)  # type: ignore[arg-type]


def given(texts: dict[str, list[str]]) -> Given:
    return {
        (name, 0): Answers(prompt=f"say {name}", answers=tuple(map(answer, each)))
        for name, each in texts.items()
    }


def compared(student: Given, reference: Given) -> Comparison:
    return compare(student, reference, Overlap(), pattern=None, tick=lambda: None)


def test_figures_are_means_over_prompts_of_means_over_draws() -> None:
    student = given({"a": ["x y", "x z"], "b": ["q"], "new": ["n"]})
    teacher = given({"a": ["x y"], "b": ["q", "r", "q", "s"], "lost": ["l"]})
    found = compared(student, teacher)
    assert (found.prompts, found.answers) == (2, 3)
    values = {name: figure.value for name, figure in found.student.items()}
    assert values["exact"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert values["rouge1"] == pytest.approx(((1 + 1 / 2) / 2 + 2 / 4) / 2)
    assert values["length_ratio"] == pytest.approx((3 + 1) / (3 + 1))
    assert values["distinct1"] == pytest.approx(4 / 5)  # x y x z q
    assert found.teacher["distinct1"].value == pytest.approx(5 / 6)  # x y q r q s
    assert "passed" not in values


def test_intervals_are_those_of_the_bootstrap_and_paired() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 50)
    names = [f"p{i:02}" for i in range(50)]
    student: Given = {}
    teacher: Given = {}
    for name, tokens in zip(names, lengths.tolist()):
        teacher[name, 0] = Answers(None, (answer("a", tokens=tokens),))
        student[name, 0] = Answers(None, (answer("a", tokens=tokens + 2),))
    found = compared(student, teacher)
    counts = document_counts(names)
    expected = counts.T @ (lengths + 2.0) / counts.sum(0)
    figure = found.student["tokens"]
    assert figure.value == pytest.approx(lengths.mean() + 2)
    assert figure.replicates is not None
    np.testing.assert_allclose(from_text(figure.replicates), expected, rtol=1e-6)
    assert figure.interval is not None
    assert figure.interval[0] < figure.value < figure.interval[1]
    assert found.differences["tokens"].value == pytest.approx(2.0)
    assert found.differences["tokens"].interval == pytest.approx((2.0, 2.0))
    assert found.student["distinct1"].interval is None


def test_shares_of_answers() -> None:
    long = answer("I cannot help with that", truncated=True, repetition=0.5)
    student = {("a", 0): Answers(None, (long,)), ("b", 0): Answers(None, (answer(" "),))}
    found = compared(student, given({"a": ["yes"], "b": ["no"]})).student
    assert found["truncated"].value == 0.5
    assert found["repetition"].value == 0.25
    assert found["empty"].value == 0.5
    assert found["refusals"].value == 0.5


def test_verdicts_count_where_every_answer_has_one() -> None:
    def judged(*passed: bool | None) -> Given:
        return {(str(i), 0): Answers(None, (answer("x", passed=p),)) for i, p in enumerate(passed)}

    found = compared(judged(True, False, False, True), judged(True, True, False, True))
    assert found.student["passed"].value == 0.5
    assert found.teacher["passed"].value == 0.75
    assert found.differences["passed"].value == pytest.approx(-0.25)
    found = compared(judged(True, None), judged(True, True))
    assert "passed" not in found.student
    assert "passed" not in found.differences


def test_other_prompts_are_refused() -> None:
    with pytest.raises(SoftshardsError, match="no prompt in common"):
        compared(given({"a": ["x"]}), given({"b": ["x"]}))
    with pytest.raises(SoftshardsError, match="no prompt in common"):
        compared({}, given({"b": ["x"]}))
    other = {("a", 0): Answers("another", (answer("x"),))}
    with pytest.raises(SoftshardsError, match=r"a/0.*another one in the reference"):
        compared(other, given({"a": ["x"]}))


def test_a_teacher_without_text_has_no_length_ratio() -> None:
    found = compared(given({"a": ["x"]}), given({"a": [""]}))
    assert "length_ratio" not in found.student
    assert found.student["exact"].value == 0.0
