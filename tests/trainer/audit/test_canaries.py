from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from schemas import SoftshardsError, open_label_set
from tests.trainer.audit.planted import text_row
from tests.trainer.build_label_set import build_label_set
from tests.trainer.conftest import World
from trainer.audit.audit_config import CanariesConfig
from trainer.audit.audit_results import Canaries
from trainer.audit.canary_file import draw_digits, read_canaries, write_canaries
from trainer.audit.canary_ranks import CANDIDATE_SEED, rank_canaries
from trainer.audit.canary_rows import CanaryRows
from trainer.audit.continuations import Speaker
from trainer.audit.read_training import read_groups
from trainer.audit.training_text import TrainingText, find_digits


def silent(done: int) -> None:
    assert done > 0


def made(path: Path, **settings: object) -> Path:
    out = path / "canaries.jsonl"
    write_canaries(CanariesConfig(out=out, **settings))  # type: ignore[arg-type]
    return out


def test_records_are_a_corpus(tmp_path: Path) -> None:
    path = made(tmp_path, count=3, repeat=4, digits=7, text="Nummer «{}» gehört Zoë.")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["id"] for record in records}) == 12
    digits = {record["digits"] for record in records}
    assert len(digits) == 3
    assert all(len(value) == 7 and value.isdigit() for value in digits)
    assert {r["text"] for r in records} == {f"Nummer «{value}» gehört Zoë." for value in digits}
    assert [canary.canary for canary in read_canaries(path)] == [0, 1, 2]


def test_the_same_command_keeps_the_file_and_another_does_not_replace_it(tmp_path: Path) -> None:
    path = made(tmp_path, count=2)
    before = path.read_bytes()
    made(tmp_path, count=2)
    with pytest.raises(SoftshardsError, match="holds something else"):
        made(tmp_path, count=2, seed=1)
    assert path.read_bytes() == before


def test_chats_are_records_of_a_corpus(tmp_path: Path) -> None:
    path = made(tmp_path, count=2, repeat=2, digits=6, text="It is {}.", question="What is it?")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert "text" not in records[0]
    asked = {"role": "user", "content": "What is it?"}
    answers = [f"It is {record['digits']}." for record in records]
    assert [record["messages"] for record in records] == [
        [asked, {"role": "assistant", "content": answer}] for answer in answers
    ]
    assert [canary.sentence for canary in read_canaries(path)] == answers[::2]
    with pytest.raises(SoftshardsError, match="--question is empty"):
        made(tmp_path, question=" ")


def test_what_stands_around_the_digits_is_read_from_rows(world: World, tmp_path: Path) -> None:
    """Of one frame in all rows only, and only where its text gives the row's ids again."""
    canaries = read_canaries(made(tmp_path, count=2, digits=6))
    tokenizer = AutoTokenizer.from_pretrained(world.teacher)

    def seen(name: str, *texts: str, unusual: bool = False) -> tuple[CanaryRows, Canaries]:
        rows = [text_row(tokenizer, f"{n}", text) for n, text in enumerate(texts)]
        if unusual:  # tokens that no encoding makes
            rows = [
                replace(row, input_ids=[i for c in text for i in tokenizer.encode(c)])
                for row, text in zip(rows, texts)
            ]
        labels = open_label_set(
            build_label_set(
                tmp_path / name, world.teacher, rows, vocab_size=world.vocab_size, max_length=512
            )
        )
        found, text = CanaryRows(canaries), TrainingText(labels)
        for group in read_groups(labels):
            found.read(group, text)
        speaker = Speaker(world.teacher, labels, "fp32")
        return found, rank_canaries(speaker, found, text, candidates=30, seed=0)

    one, two = (f"a dog sat <eos>the mat {canary.digits} and the cat" for canary in canaries)
    found, ranked = seen("same", one, two, one, "a dog")
    assert found.rows == {0: 2, 1: 1}
    assert len(found.keys) == 3
    assert found.frame is not None
    assert (found.frame.before, found.frame.after) == ("a dog sat <eos>the mat ", " and the cat")
    assert ranked.in_rows
    assert not seen("unusual", one, two, unusual=True)[1].in_rows
    other, ranked = seen("other", one, two.replace("mat", "cat"))
    assert other.frame is None
    assert not ranked.in_rows
    assert not seen("long", *(text + " the cat" * 200 for text in (one, two)))[1].in_rows


@pytest.mark.parametrize("text", ["no place", "{} first", "two {} and {}"])
def test_a_text_needs_one_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(SoftshardsError, match="once, after some words"):
        made(tmp_path, text=text)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no canary"),
        ('{"id": "a"}\n', "row 1: not a canary"),
        ("ÿ", "not a canary"),
        (
            '{"id":"a","text":"x 1","canary":0,"before":"x ","digits":"2","after":""}\n',
            "parts are not its text",
        ),
        (
            '{"id":"a","text":"x 1","canary":0,"before":"x ","digits":"1","after":""}\n'
            '{"id":"b","text":"y 2","canary":1,"before":"y ","digits":"2","after":""}\n',
            "differ in more than their digits",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_text(content)
    with pytest.raises(SoftshardsError, match=what):
        read_canaries(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="cannot be read"):
        read_canaries(tmp_path / "none.jsonl")


def test_digits_are_found_in_texts() -> None:
    texts = ["a 123456 b 654321", "", "1234567", "12345"]
    assert find_digits(texts, ["123456", "654321"]) == [{0, 1}, set(), {0}, set()]


def test_ranks_equal_a_sort_of_all(world: World, tmp_path: Path) -> None:
    canaries = read_canaries(made(tmp_path, count=2, digits=6))
    labels = open_label_set(world.labels)
    speaker, text = Speaker(world.teacher, labels, "fp32"), TrainingText(labels)
    seen = CanaryRows(canaries)
    seen.rows[1] = 5
    found = rank_canaries(speaker, seen, text, candidates=50, seed=3)
    assert not found.in_rows
    inserted = frozenset(canary.digits for canary in canaries)
    drawn = draw_digits(50, 6, 3 + CANDIDATE_SEED, inserted)
    assert not inserted & set(drawn)
    assert found.candidates == 51
    assert found.threshold == pytest.approx(math.log2(2 / 0.05))
    for canary, ranked in zip(canaries, found.canaries):
        sentences = [f"The random number is {d}." for d in [canary.digits, *drawn]]
        values = speaker.log_likelihoods([text.encode(s) for s in sentences], silent)
        assert ranked.rank == 1 + int((values[1:] >= values[0]).sum())
        assert ranked.exposure == pytest.approx(math.log2(51 / ranked.rank))
    assert [ranked.rows for ranked in found.canaries] == [0, 5]


def test_a_canary_that_nobody_saw_has_a_uniform_rank(world: World, tmp_path: Path) -> None:
    """So that exposure e has a probability of 2^-e, and the threshold its promise."""
    canaries = read_canaries(made(tmp_path, count=200, digits=6))
    labels = open_label_set(world.labels)
    speaker = Speaker(world.student, labels, "fp32")
    seen = CanaryRows(canaries)
    found = rank_canaries(speaker, seen, TrainingText(labels), candidates=400, seed=0)
    assert found.candidates == 4001  # as many as the threshold of 200 canaries needs
    shares = np.sort([ranked.rank / found.candidates for ranked in found.canaries])
    steps = np.arange(1, 201) / 200
    assert np.abs(shares - steps).max() < 1.63 / math.sqrt(200)  # Kolmogorov-Smirnov, 1 %
    assert found.memorized.found == 0
