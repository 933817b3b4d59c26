from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from labeler.labeling.teacher.teacher_identity import local_weights, teacher_identity
from schemas.fingerprint import sha256_json
from tests.labeler.conftest import Settings


@pytest.fixture(scope="module")
def opened(teacher: Path) -> Teacher:
    return open_teacher(teacher, max_length=64)


def rendered(columns: dict[str, Any], teacher: Teacher, config: LabelConfig) -> list[Any]:
    record = Record(id="f.jsonl:0", source="f.jsonl", columns=columns)
    return list(render([record], teacher, config))


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_chunks_label_every_token_once(opened: Teacher, settings: Settings, overlap: int) -> None:
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


def test_only_the_completion_is_labeled(opened: Teacher, settings: Settings) -> None:
    columns = {"prompt": "the cat", "completion": " sat on the mat", "topic": "pets"}
    (row,) = rendered(columns, opened, settings())
    (span,) = row.spans
    assert span.kind == "answer"
    assert opened.tokenizer.decode(row.input_ids[span.start : span.stop]) == " sat on the mat"
    assert row.meta == '{"topic": "pets"}'
    assert row.n_labels == span.stop - span.start


def test_prompt_goes_through_the_chat_template(opened: Teacher, settings: Settings) -> None:
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
    settings: Settings,
    mode: str,
    columns: dict[str, Any],
    reason: str,
) -> None:
    (reject,) = rendered(columns | {"id": "mine"}, opened, settings(mode=mode, max_tokens=8))
    assert isinstance(reject, Reject)
    assert reject.id == "mine"
    assert reason in reject.reason


def test_a_reject_passes_through(opened: Teacher, settings: Settings) -> None:
    reject = Reject(id="x", source="f", reason="bad")
    assert list(render([reject], opened, settings())) == [reject]
    assert not isinstance(reject, Sequence)


def test_long_sequences_are_truncated_or_rejected(opened: Teacher, settings: Settings) -> None:
    text = "the cat sat on the mat " * 20
    ids = opened.encode(text)
    (cut,) = rendered({"text": text}, opened, settings(max_length=32, too_long="truncate"))
    assert cut.input_ids == ids[:32]
    assert [(s.start, s.stop) for s in cut.spans] == [(1, 32)]
    (reject,) = rendered({"text": text}, opened, settings(max_length=32, too_long="reject"))
    assert reject.reason == f"it has {len(ids)} tokens, more than --max-length 32"
    pair = {"prompt": text, "completion": text}
    (reject,) = rendered(pair, opened, settings(max_length=32, too_long="truncate"))
    assert "no label is left" in reject.reason
    prompt = len(ids)
    config = settings(max_length=prompt + 3, too_long="truncate")
    (cut,) = rendered(pair, opened, config)
    assert [(s.start, s.stop) for s in cut.spans] == [(prompt, prompt + 3)]
    assert cut.n_labels == 3
    config = settings(mode="generate", max_tokens=8, too_long="truncate")
    (reject,) = rendered({"prompt": text}, opened, config)
    assert "more than --max-length" in reject.reason


def test_a_truncated_chat_keeps_its_first_turns(opened: Teacher, settings: Settings) -> None:
    user, answer = {"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat on it"}
    columns = {"messages": [user, answer, user, answer]}
    (whole,) = rendered(columns, opened, settings())
    first, second = whole.spans
    config = settings(max_length=second.start + 1, too_long="truncate")
    (cut,) = rendered(columns, opened, config)
    assert cut.input_ids == whole.input_ids[: second.start + 1]
    assert [(s.start, s.stop) for s in cut.spans] == [
        (first.start, first.stop),
        (second.start, second.start + 1),
    ]
    (reject,) = rendered(columns, opened, settings(max_length=second.start + 1))
    assert "more than --max-length" in reject.reason


def test_eos_is_appended_once(opened: Teacher, settings: Settings) -> None:
    eos = opened.tokenizer.eos_token_id
    config = settings(append_eos=True)
    for text in ("the cat", "the cat<eos>"):
        (row,) = rendered({"text": text}, opened, config)
        assert row.input_ids == [*opened.encode("the cat"), eos]
        (row,) = rendered({"prompt": "a dog", "completion": text}, opened, config)
        assert row.input_ids == [*opened.encode("a dog"), *opened.encode("the cat"), eos]
        assert row.spans[-1].stop == len(row.input_ids)
    (row,) = rendered({"input_ids": [5, 6]}, opened, config)
    assert row.input_ids == [5, 6, eos]
    (row,) = rendered({"text": "the cat"}, opened, settings())
    assert row.input_ids == opened.encode("the cat")


def test_the_prompt_is_labeled_too(opened: Teacher, settings: Settings) -> None:
    columns = {"prompt": "the cat", "completion": " sat on the mat"}
    (row,) = rendered(columns, opened, settings(spans="everything"))
    prompt = len(opened.encode("the cat"))
    found = [(s.start, s.stop, s.kind) for s in row.spans]
    assert found == [(1, prompt, "prompt"), (prompt, len(row.input_ids), "answer")]


def test_token_ids_are_not_changed(opened: Teacher, settings: Settings) -> None:
    ids = list(range(1, 101))
    chunks = rendered({"input_ids": ids, "topic": "pets"}, opened, settings())
    assert [len(c.input_ids) for c in chunks] == [64, 37]
    assert chunks[0].meta == '{"topic": "pets"}'
    spans = [{"start": 1, "stop": 3, "kind": "thinking"}, {"start": 60, "stop": 70}]
    columns = {"input_ids": ids, "spans": spans, "prompt": "for people"}
    (row,) = rendered(columns, opened, settings(max_length=100))
    assert [(s.start, s.stop, s.kind) for s in row.spans] == [(1, 3, "thinking"), (60, 70, "text")]
    assert row.prompt == "for people"
    assert row.n_labels == 12
    (reject,) = rendered(columns, opened, settings())
    assert "100 tokens, more than --max-length 64" in reject.reason
    (cut,) = rendered(columns, opened, settings(too_long="truncate"))
    assert [(s.start, s.stop) for s in cut.spans] == [(1, 3), (60, 64)]
    config = settings(mode="generate", max_tokens=8)
    (prompt,) = rendered({"input_ids": ids[:9]}, opened, config)
    assert prompt.input_ids == ids[:9]
    assert prompt.spans == ()
    (reject,) = rendered(columns, opened, config)
    assert "labels only the tokens that it generates" in reject.reason


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"input_ids": []}, "not a list of token ids"),
        ({"input_ids": ["a", "b"]}, "not a list of token ids"),
        ({"input_ids": [1, [2]]}, "not a list of token ids"),
        ({"input_ids": [True, False]}, "not a list of token ids"),
        ({"input_ids": [1.0, 2.0]}, "not a list of token ids"),
        ({"input_ids": "text"}, "text, but not JSON"),
        ({"input_ids": [1, -1]}, "has the id -1"),
        ({"input_ids": [1, 5000]}, "has the id 5000; the tokenizer has 300 tokens"),
        ({"input_ids": [1]}, "1 tokens"),
        ({"input_ids": [1, 2], "spans": []}, "no span"),
        ({"input_ids": [1, 2], "spans": [[0, 1]]}, "not a list of {start, stop, kind}"),
        (
            {"input_ids": [1, 2], "spans": [{"start": 1, "stop": float("inf")}]},
            "not a list of {start, stop, kind}",
        ),
        ({"input_ids": [1, 2], "spans": [{"start": 0, "stop": 1}]}, "outside 1..2"),
        ({"input_ids": [1, 2], "spans": [{"start": 1, "stop": 3}]}, "outside 1..2"),
        (
            {"input_ids": [1] * 9, "spans": [{"start": 3, "stop": 5}, {"start": 4, "stop": 6}]},
            "out of order",
        ),
        (
            {"input_ids": [1, 2], "spans": [{"start": 1, "stop": 2, "kind": "poem"}]},
            "unknown span kind 'poem'",
        ),
    ],
)
def test_bad_token_ids_become_rejects(
    opened: Teacher, settings: Settings, columns: dict[str, Any], reason: str
) -> None:
    (reject,) = rendered(columns, opened, settings())
    assert isinstance(reject, Reject)
    assert reason in reject.reason


def test_a_record_keeps_its_parent(opened: Teacher, settings: Settings) -> None:
    record = Record(id="x", source="f", columns={"text": "the cat"}, parent_id="doc/0/1")
    (row,) = render([record], opened, settings())
    assert isinstance(row, Sequence)
    assert row.parent_id == "doc/0/1"
    assert not row.templated


def test_a_chat_must_end_with_a_question(opened: Teacher, settings: Settings) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    config = settings(mode="generate", max_tokens=8)
    (reject,) = rendered({"messages": messages}, opened, config)
    assert "nothing to answer" in reject.reason
    (row,) = rendered({"messages": messages[:1]}, opened, config)
    assert row.templated


def test_rendering_rules_are_in_the_identity(opened: Teacher, settings: Settings) -> None:
    weights = local_weights(opened.path, "full")
    plain = teacher_identity(opened, settings(), weights)
    unused = ("spans", "rendering", "top_p_labels", "min_k")
    assert [getattr(plain, name) for name in unused] == [None] * 4
    assert plain.chat_template == sha256_json([opened.chat_template, {}])
    ruled = teacher_identity(
        opened,
        settings(
            spans="turns",
            too_long="truncate",
            append_eos=True,
            student_drop=("tools", "system"),
            top_p_labels=0.9,
            min_k=2,
            thinking=True,
            template_kwargs={"a-b": "1"},
        ),
        weights,
    )
    assert ruled.spans == "turns"
    assert ruled.rendering == {
        "too_long": "truncate",
        "append_eos": True,
        "student_drop": ["system", "tools"],
    }
    assert (ruled.top_p_labels, ruled.min_k) == (0.9, 2)
    arguments = {"a_b": 1, "enable_thinking": True}
    assert ruled.chat_template == sha256_json([opened.chat_template, arguments])
