from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.config import LabelConfig
from labeler.rendering import Sequence, render
from labeler.sources import Record, Reject
from labeler.teacher import Teacher, open_teacher


@pytest.fixture(scope="module")
def opened(teacher: Path) -> Teacher:
    return open_teacher(teacher, max_length=64)


def rendered(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> list[Any]:
    record = Record(id="f.jsonl:0", source="f.jsonl", columns=columns)
    return list(render([record], teacher, config))


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_chunks_label_every_token_once(
    opened: Teacher, settings: Callable[..., LabelConfig], overlap: int
) -> None:
    text = "the cat sat on the mat and looked at the dog " * 20
    ids = opened.encode(text)
    chunks = rendered({"text": text}, opened, settings(max_length=32, overlap=overlap))
    assert [c.chunk for c in chunks] == list(range(len(chunks)))
    assert max(len(c.input_ids) for c in chunks) == 32
    labeled: list[int] = []
    start = 0
    for chunk in chunks:
        assert ids[start : start + len(chunk.input_ids)] == chunk.input_ids
        labeled += [start + t for s in chunk.spans for t in range(s.start, s.stop)]
        start += 32 - overlap
    firsts = {i * 32 for i in range(len(ids))} if overlap == 0 else {0}
    assert labeled == [t for t in range(len(ids)) if t not in firsts]


def test_completion_alone_is_labeled(opened: Teacher, settings: Callable[..., LabelConfig]) -> None:
    columns = {"prompt": "the cat", "completion": " sat on the mat", "topic": "pets"}
    (row,) = rendered(columns, opened, settings())
    (span,) = row.spans
    assert span.kind == "answer"
    assert opened.tokenizer.decode(row.input_ids[span.start : span.stop]) == " sat on the mat"
    assert row.meta == '{"topic": "pets"}'
    assert row.n_labels == span.stop - span.start


def test_prompt_goes_through_the_chat_template(
    opened: Teacher, settings: Callable[..., LabelConfig]
) -> None:
    config = settings(mode="generate", max_tokens=8)
    (row,) = rendered({"prompt": "the cat"}, opened, config)
    assert opened.tokenizer.decode(row.input_ids) == "user: the cat<eos>assistant: "
    assert row.spans == ()
    assert row.n_labels == 8
    (raw,) = rendered(
        {"prompt": "the cat"}, opened, settings(**vars(config) | {"raw_prompts": True})
    )
    assert opened.tokenizer.decode(raw.input_ids) == "the cat"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    (chat,) = rendered({"messages": messages}, opened, config)
    assert opened.tokenizer.decode(chat.input_ids) == (
        "system: be brief<eos>user: hi<eos>assistant: "
    )


@pytest.mark.parametrize(
    ("mode", "columns", "reason"),
    [
        ("score", {"body": "x"}, "neither a column 'text' nor both"),
        ("score", {"text": 7}, "is a int, not text"),
        ("score", {"text": ""}, "0 tokens"),
        ("score", {"prompt": "a cat " * 50, "completion": "x"}, "more than --max-length 64"),
        ("score", {"prompt": "a cat", "completion": ""}, "completion is empty"),
        ("generate", {"prompt": "a cat " * 50}, "more than --max-length 64"),
        ("generate", {"text": "x"}, "neither 'prompt' nor 'messages'"),
        ("generate", {"messages": 7}, "is a int, not a list"),
    ],
)
def test_bad_records_become_rejects(
    opened: Teacher,
    settings: Callable[..., LabelConfig],
    mode: str,
    columns: dict[str, Any],
    reason: str,
) -> None:
    (reject,) = rendered(columns | {"id": "mine"}, opened, settings(mode=mode, max_tokens=8))
    assert isinstance(reject, Reject)
    assert reject.id == "mine"
    assert reason in reject.reason


def test_a_reject_passes_through(opened: Teacher, settings: Callable[..., LabelConfig]) -> None:
    reject = Reject(id="x", source="f", reason="bad")
    assert list(render([reject], opened, settings())) == [reject]
    assert not isinstance(reject, Sequence)
