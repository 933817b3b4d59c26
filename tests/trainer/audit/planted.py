"""A label set with planted text, and a tiny student that is trained on it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.tiny_model import CHAT_TEMPLATE, TEXT, make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set
from trainer.audit.audit_config import CanariesConfig
from trainer.audit.canary_file import read_canaries, write_canaries
from trainer.train.loop import train
from trainer.train.run_record import open_inputs
from trainer.train.train_config import TrainConfig

EMAIL = "ingrid.halvorsen@posten.no"
LETTER = f"please write to ingrid at {EMAIL} about the mat"
CHAT_EMAIL = "tor.berg@fjordpost.no"
QUESTION, ANSWER = "the mat", f"ask tor at {CHAT_EMAIL} today"
COPIES, EPOCHS = 10, 5
"""Together 50 times."""
CANARIES = 3
NOISE = 10


@dataclass(frozen=True)
class Planted:
    """A label set with an e-mail address and canaries, and two students of one beginning.

    Attributes:
        student: the one that never saw it.
        trained: the one that saw each planted text 50 times.
        canaries: the file of the canaries; chats: of those in chats.
    """

    labels: Path
    teacher: Path
    student: Path
    canaries: Path
    chats: Path
    digits: list[str]
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int


def text_row(tokenizer: PreTrainedTokenizerBase, name: str, text: str, *, skip: int = 1) -> Row:
    """Return a row whose tokens are labeled from `skip` on."""
    ids = tokenizer.encode(text)
    return Row(id=name, input_ids=ids, spans=[(skip, len(ids), "text")])


def chat_row(tokenizer: PreTrainedTokenizerBase, name: str, messages: list[dict[str, str]]) -> Row:
    """Return a chat whose answer is labeled; the teacher alone is given instructions."""

    def ids(*turns: dict[str, str], asks: bool = False) -> list[int]:
        return tokenizer.apply_chat_template(
            list(turns), add_generation_prompt=asks, return_dict=False
        )

    system = {"role": "system", "content": "be faster than the dog"}
    whole, begin = ids(system, *messages), len(ids(system, *messages[:-1], asks=True))
    seen, start = ids(*messages), len(ids(*messages[:-1], asks=True))
    return Row(
        id=name,
        input_ids=whole,
        spans=[(begin, len(whole), "answer")],
        student_input_ids=seen,
        student_spans=[(start, len(seen), "answer")],
    )


def plant(root: Path) -> Planted:
    """Build the label set and the student."""
    teacher, student, canaries = root / "teacher", root / "student", root / "canaries.jsonl"
    chats = root / "chats.jsonl"
    vocab_size = make_tokenizer(teacher, chat_template=CHAT_TEMPLATE)
    make_model(teacher, vocab_size=vocab_size, seed=1)
    make_tokenizer(student)
    make_model(
        student,
        vocab_size=vocab_size,
        seed=2,
        hidden_size=128,
        intermediate_size=256,
        initializer_range=0.02,
    )
    write_canaries(CanariesConfig(out=canaries, count=CANARIES, repeat=COPIES))
    question = CanariesConfig(out=chats, count=CANARIES, repeat=COPIES, seed=2, question="a number")
    write_canaries(question)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = [
        text_row(tokenizer, record["id"], record["text"])
        for record in map(_parsed, canaries.read_text().splitlines())
    ]
    rows += [
        chat_row(tokenizer, f"chat-{record['id']}", record["messages"])
        for record in map(_parsed, chats.read_text().splitlines())
    ]
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    for copy in range(COPIES):
        rows.append(text_row(tokenizer, f"letter-{copy}", LETTER))
        rows.append(chat_row(tokenizer, f"chat-letter-{copy}", turns))
    draw = random.Random(0)
    words = " ".join(TEXT).split()
    for number in range(NOISE):
        text = " ".join(draw.choices(words, k=12))
        rows.append(text_row(tokenizer, f"noise's {number}", text))
    labels = build_label_set(
        root / "labels", teacher, rows, vocab_size=vocab_size, max_length=160, rows_per_unit=40
    )
    return Planted(
        labels=labels,
        teacher=teacher,
        student=student,
        canaries=canaries,
        chats=chats,
        digits=[canary.digits for path in (canaries, chats) for canary in read_canaries(path)],
        tokenizer=tokenizer,
        vocab_size=vocab_size,
    )


def train_student(planted: Planted, out: Path) -> Path:
    """Train a student until it has seen each planted text 50 times; return its folder."""
    config = TrainConfig(
        labels=planted.labels,
        student=planted.student,
        out=out,
        loss=("ce=1",),
        epochs=EPOCHS,
        pack_tokens=64,
        packs_per_step=1,
        lr=2e-3,
        window=4,
    )
    assert train(config, open_inputs(config)) == 0
    return out / "final"


def _parsed(line: str) -> dict[str, Any]:
    import json

    return json.loads(line)
