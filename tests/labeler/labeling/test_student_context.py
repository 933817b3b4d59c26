"""A student with a different context has the same labeled tokens as the teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.inputs.read_records import Record, Reject
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from tests.labeler.chat_templates import STYLES, make_chat_teacher

QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat?"}]
CHAT = [*QUESTION, {"role": "assistant", "content": "sat", "reasoning_content": "hm"}]
TOOLS = [{"name": "f"}]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    path = make_chat_teacher(tmp_path_factory.mktemp("qwen"), STYLES["qwen"])
    return open_teacher(path, max_length=1024)


def rendered(teacher: Teacher, columns: dict[str, Any], **changes: Any) -> Sequence | Reject:
    config = LabelConfig(model=teacher.path, out=teacher.path, **changes)
    record = Record(id="f.jsonl:0", source="f.jsonl", columns=columns)
    (row,) = render([record], teacher, config)
    return row


def seen(teacher: Teacher, row: Sequence | Reject) -> tuple[str, list[str]]:
    """Return the student's text and its labeled parts; their tokens equal the teacher's."""
    assert isinstance(row, Sequence), row
    assert row.student_input_ids is not None
    assert row.student_spans is not None
    ours = [(s.kind, row.input_ids[s.start : s.stop]) for s in row.spans]
    theirs = [(s.kind, row.student_input_ids[s.start : s.stop]) for s in row.student_spans]
    assert ours == theirs
    assert row.n_labels == sum(len(ids) for _, ids in ours)
    decode = teacher.tokenizer.decode
    return decode(row.student_input_ids), [decode(ids) for _, ids in theirs]


@pytest.mark.parametrize(
    ("drop", "text", "labeled"),
    [
        (
            ("system",),
            '<|im_start|>system\n# Tools\n[{"name": "f"}]<|im_end|>\n'
            "<|im_start|>user\nthe cat?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nhm\n</think>\n\nsat<|im_end|>\n",
            ["<think>\nhm\n</think>\n\n", "sat<|im_end|>"],
        ),
        (
            ("tools",),
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nthe cat?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nhm\n</think>\n\nsat<|im_end|>\n",
            ["<think>\nhm\n</think>\n\n", "sat<|im_end|>"],
        ),
        (
            ("thinking", "tools", "system"),
            "<|im_start|>user\nthe cat?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\nsat<|im_end|>\n",
            ["sat<|im_end|>"],
        ),
    ],
)
def test_the_student_does_not_see_dropped_parts(
    qwen: Teacher, drop: tuple[str, ...], text: str, labeled: list[str]
) -> None:
    row = rendered(qwen, {"messages": CHAT, "tools": TOOLS}, student_drop=drop)
    assert seen(qwen, row) == (text, labeled)
    assert isinstance(row, Sequence)
    assert "be brief" in qwen.tokenizer.decode(row.input_ids)


def test_documents_are_dropped(tmp_path: Path) -> None:
    template = "{{ documents or '' }}" + STYLES["chatml"].template
    path = make_chat_teacher(tmp_path, STYLES["chatml"])
    (path / "chat_template.jinja").write_text(template)
    teacher = open_teacher(path, max_length=1024)
    chat = [*QUESTION, {"role": "assistant", "content": "sat"}]
    columns = {"messages": chat, "documents": [{"title": "T", "text": "U"}]}
    row = rendered(teacher, columns, student_drop=("documents",))
    assert seen(teacher, row)[0].startswith("<|im_start|>system\nbe brief")
    assert isinstance(row, Sequence)
    assert teacher.tokenizer.decode(row.input_ids).startswith("[{'title': 'T', 'text': 'U'}]")


def test_thinking_in_the_text_is_dropped(tmp_path: Path) -> None:
    teacher = open_teacher(make_chat_teacher(tmp_path, STYLES["chatml"]), max_length=1024)
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nsat"}
    row = rendered(teacher, {"messages": [*QUESTION, answer]}, student_drop=("thinking",))
    text, labeled = seen(teacher, row)
    assert text.endswith("assistant\nsat<|im_end|>\n")
    assert labeled == ["sat<|im_end|>"]


def test_nothing_to_drop_is_the_teachers_context(qwen: Teacher) -> None:
    row = rendered(qwen, {"messages": CHAT[1:]}, student_drop=("system", "tools"))
    assert isinstance(row, Sequence)
    assert row.student_input_ids is None
    assert row.student_spans is None
    assert [span.kind for span in row.spans] == ["thinking", "answer"]


def test_student_messages(qwen: Teacher) -> None:
    student = [{"role": "user", "content": "cat"}, CHAT[-1]]
    row = rendered(qwen, {"messages": CHAT, "student_messages": student})
    text, labeled = seen(qwen, row)
    assert text.startswith("<|im_start|>user\ncat<|im_end|>\n")
    assert labeled == ["<think>\nhm\n</think>\n\n", "sat<|im_end|>"]
    assert isinstance(row, Sequence)
    assert row.meta is None


@pytest.mark.parametrize("spans", ["turns", "everything"])
def test_other_turns_are_labeled_if_the_student_sees_the_same_ones(
    qwen: Teacher, spans: str
) -> None:
    """Tools are not a turn, so all turns pair; with a dropped turn, no prompt is labeled."""
    columns = {"messages": CHAT, "tools": TOOLS}
    answer = ["<think>\nhm\n</think>\n\n", "sat<|im_end|>"]
    _, labeled = seen(qwen, rendered(qwen, columns, spans=spans, student_drop=("tools",)))
    assert labeled == (["be brief", "the cat?", *answer] if spans == "turns" else answer)
    _, labeled = seen(qwen, rendered(qwen, columns, spans=spans, student_drop=("system",)))
    assert labeled == answer


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            {
                "student_messages": [
                    {"role": "user", "content": "x"},
                    {**CHAT[-1], "content": "sit"},
                ]
            },
            r"spans 1 \(answer\)",
        ),
        (
            {"student_messages": [*QUESTION, {**CHAT[-1], "reasoning_content": "oh"}]},
            r"spans 0 \(thinking\) differ at token",
        ),
        (
            {"student_messages": [*CHAT, *CHAT]},
            "2 labeled spans in the teacher's context, 3 in the student's",
        ),
        ({"student_messages": QUESTION}, "nothing to label"),
        ({"student_messages": 3}, "'student_messages' is a int"),
    ],
)
def test_a_student_chat_with_different_answers_is_rejected(
    qwen: Teacher, columns: dict[str, Any], reason: str
) -> None:
    row = rendered(qwen, {"messages": CHAT} | columns)
    assert isinstance(row, Reject)
    assert re.search(reason, row.reason), row.reason


def test_student_prompt(qwen: Teacher) -> None:
    columns = {"prompt": "Look it up. the cat", "completion": " sat", "student_prompt": "the cat"}
    assert seen(qwen, rendered(qwen, columns)) == ("the cat sat", [" sat"])
    assert seen(qwen, rendered(qwen, columns, spans="everything"))[1] == [" sat"]
    empty = rendered(qwen, columns | {"student_prompt": ""})
    assert isinstance(empty, Reject)  # the first token has no label


def test_truncation_keeps_the_labels_that_both_have(qwen: Teacher) -> None:
    """The student's sequence is longer, so it decides how many labels are left."""
    columns = {"prompt": "cat", "completion": " sat" * 40, "student_prompt": "the dog " * 9}
    whole = rendered(qwen, columns)
    assert isinstance(whole, Sequence)
    assert whole.student_input_ids is not None
    assert len(whole.student_input_ids) > len(whole.input_ids)
    length = len(whole.input_ids)
    cut = rendered(qwen, columns, too_long="truncate", max_length=length)
    seen(qwen, cut)
    assert isinstance(cut, Sequence)
    assert cut.student_input_ids == whole.student_input_ids[:length]
    assert whole.student_spans is not None
    assert cut.n_labels == length - whole.student_spans[0].start
    refused = rendered(qwen, columns, max_length=length)
    assert isinstance(refused, Reject)


def test_a_prompt_in_mode_generate_has_a_student_prompt(qwen: Teacher) -> None:
    generate: dict[str, Any] = {"mode": "generate", "max_tokens": 8}
    row = rendered(qwen, {"messages": QUESTION}, student_drop=("system",), **generate)
    assert isinstance(row, Sequence)
    assert row.student_spans == ()
    assert row.n_labels == 8
    assert row.student_input_ids is not None
    assert qwen.tokenizer.decode(row.student_input_ids) == (
        "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"
    )
    raw = {"prompt": "Look it up. the cat", "student_prompt": "the cat"}
    row = rendered(qwen, raw, raw_prompts=True, **generate)
    assert isinstance(row, Sequence)
    assert row.student_input_ids == qwen.encode("the cat")
    templated = rendered(qwen, raw, **generate)
    assert isinstance(templated, Sequence)
    assert templated.student_input_ids is not None
    assert "user\nthe cat<|im_end|>" in qwen.tokenizer.decode(templated.student_input_ids)
    long = rendered(qwen, raw | {"student_prompt": "cat " * 99}, max_length=64, **generate)
    assert isinstance(long, Reject)
    assert "the student's prompt has" in long.reason


def test_a_label_sets_row_keeps_its_student_context(qwen: Teacher) -> None:
    """Records from a label set have ids and spans, including the student's."""
    columns = {
        "id": "doc/0/1",
        "input_ids": [5, 6, 7, 8],
        "spans": [{"start": 2, "stop": 4, "kind": "answer"}],
        "student_input_ids": [9, 7, 8],
        "student_spans": [{"start": 1, "stop": 3, "kind": "answer"}],
        "prompt": "the cat",
        "generation": " sat",
    }
    row = rendered(qwen, columns)
    assert isinstance(row, Sequence)
    assert row.student_input_ids == [9, 7, 8]
    assert row.prompt == "the cat"
    assert row.meta == '{"generation": " sat"}'
    bad = rendered(qwen, columns | {"student_input_ids": [9, 7, 9]})
    assert isinstance(bad, Reject)
    assert "spans 0 (answer) differ at token 1" in bad.reason
