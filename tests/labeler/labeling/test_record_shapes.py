"""Data sets of other shapes: ShareGPT, conversational prompts, Alpaca, roles by other names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labeler.labeling.teacher.teacher import Teacher
from tests.labeler.labeled_chats import CALLS, labeled, make_teacher, read, reason, text_of

QUESTION = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
CHAT = QUESTION + "4.<|im_end|>\n"
USER = {"role": "user", "content": "What is 2+2?"}
ASSISTANT = {"role": "assistant", "content": "4."}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"), CALLS)


def turns(*pairs: tuple[str, Any], keys: tuple[str, str] = ("from", "value")) -> list[Any]:
    return [dict(zip(keys, pair)) for pair in pairs]


SHAREGPT = turns(("human", "What is 2+2?"), ("gpt", "4."))
SHAPES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"conversations": SHAREGPT}, {}, "ShareGPT messages (from, value)"),
    ({"conversation": SHAREGPT}, {}, "ShareGPT messages (from, value)"),
    ({"messages": SHAREGPT}, {}, "ShareGPT messages (from, value)"),
    ({"talk": SHAREGPT}, {"messages_column": "talk"}, "ShareGPT messages (from, value)"),
    ({"conversations": json.dumps(SHAREGPT)}, {}, "ShareGPT messages (from, value)"),
    ({"conversations": [USER, ASSISTANT]}, {}, "messages"),
    (
        {"messages": turns(("human", "What is 2+2?"), ("gpt", "4."), keys=("who", "says"))},
        {"role_key": "who", "content_key": "says"},
        "messages",
    ),
    ({"prompt": [USER], "completion": [ASSISTANT]}, {}, "prompt and completion as a chat"),
    ({"prompt": [USER], "completion": "4."}, {}, "prompt and completion as a chat"),
    ({"prompt": USER["content"], "completion": [ASSISTANT]}, {}, "prompt and completion as a chat"),
    (
        {"prompt": SHAREGPT[:1], "completion": SHAREGPT[1:]},
        {},
        "prompt and completion as a chat",
    ),
    (
        {"prompt": USER["content"], "completion": "4."},
        {"chat_prompts": True},
        "prompt and completion as a chat",
    ),
    ({"instruction": "What is 2+2?", "output": "4."}, {}, "instruction, input and output"),
    (
        {"instruction": "What is 2+2?", "input": "", "output": "4."},
        {},
        "instruction, input and output",
    ),
    (
        {"text": "x", "instruction": "What is 2+2?", "input": None, "output": "4."},
        {"shape": "instruction"},
        "instruction, input and output",
    ),
    (
        {"text": "x", "conversations": SHAREGPT},
        {"shape": "messages"},
        "ShareGPT messages (from, value)",
    ),
]


@pytest.mark.parametrize(("columns", "flags", "shape"), SHAPES)
def test_shapes_are_read_as_the_same_chat(
    teacher: Teacher, columns: dict[str, Any], flags: dict[str, Any], shape: str
) -> None:
    row = read(teacher, columns | {"topic": "sums"}, **flags)
    assert text_of(teacher, row) == CHAT
    assert labeled(teacher, columns, **flags) == ["4.<|im_end|>"]
    assert row.shape == shape
    kept = {"text": "x"} if "text" in columns else {}
    assert json.loads(row.meta or "") == kept | {"topic": "sums"}


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER]},
        {"prompt": SHAREGPT[:1]},
        {"instruction": "What is 2+2?", "output": "4."},
        {"instruction": "What is 2+2?"},
        {"conversations": SHAREGPT[:1]},
        {"prompt": "What is 2+2?"},
    ],
)
def test_prompts_are_answered(teacher: Teacher, columns: dict[str, Any]) -> None:
    assert text_of(teacher, read(teacher, columns, mode="generate")) == QUESTION


@pytest.mark.parametrize(
    "answers", [[ASSISTANT], [ASSISTANT, ASSISTANT], turns(("gpt", "4."))], ids=str
)
def test_the_last_answer_is_given_again(teacher: Teacher, answers: list[Any]) -> None:
    first = SHAREGPT[:1] if "from" in answers[0] else [USER]
    columns = {"messages": first + answers}
    assert "--regenerate leaves it out" in reason(teacher, columns, mode="generate")
    row = read(teacher, columns, mode="generate", regenerate=True)
    assert text_of(teacher, row) == QUESTION
    assert (
        text_of(teacher, read(teacher, {"messages": [USER]}, mode="generate", regenerate=True))
        == QUESTION
    )
    alone = {"messages": [ASSISTANT]}
    assert "nothing to answer" in reason(teacher, alone, mode="generate", regenerate=True)


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ("human", "assistant "),
        ("user", "bot"),
        ("human", "ai"),
        ("User", "Assistant"),
        ("prompter", "model"),
        ("HUMAN", "ChatGPT"),
        ("user", "chatbot"),
    ],
)
def test_roles_by_other_names(teacher: Teacher, asks: str, answers: str) -> None:
    messages = turns((asks, "What is 2+2?"), (answers, "4."), keys=("role", "content"))
    assert text_of(teacher, read(teacher, {"messages": messages})) == CHAT


@pytest.mark.parametrize(
    ("asks", "answers", "keys"),
    [
        ("prompter", "assistant", ("role", "text")),
        ("human", "assistant", ("role", "value")),
        ("human", "gpt", ("from", "text")),
        ("user", "assistant", ("from", "content")),
        ("user", "model", ("role", "parts")),
    ],
)
def test_keys_by_other_names(
    teacher: Teacher, asks: str, answers: str, keys: tuple[str, str]
) -> None:
    texts: list[Any] = ["What is 2+2?", "4."]
    if keys[1] == "parts":
        texts = [[{"text": text}] for text in texts]
    messages = turns((asks, texts[0]), (answers, texts[1]), keys=keys)
    assert text_of(teacher, read(teacher, {"messages": messages})) == CHAT


@pytest.mark.parametrize("broken", [{"words": "4."}, {"content": None}, {}])
def test_a_message_without_content_is_refused(teacher: Teacher, broken: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", **broken}]
    assert "message 1 (assistant) has no content" in reason(teacher, {"messages": messages})
    thoughts = {"role": "assistant", "content": None, "reasoning": "hm"}
    assert "no content" not in reason(teacher, {"messages": [USER, thoughts]})


def test_a_role_that_is_no_text_gives_way_to_another_key(teacher: Teacher) -> None:
    messages = [turn | {"role": [1]} for turn in SHAREGPT]
    assert text_of(teacher, read(teacher, {"messages": messages})) == CHAT


def test_roles_by_flags(teacher: Teacher) -> None:
    messages = turns(("Q", "What is 2+2?"), ("A", "4."), keys=("role", "content"))
    why = reason(teacher, {"messages": messages})
    assert why == "it has nothing to label with --spans assistant; its roles: Q, A"
    roles = {"Q": "user", "A": "assistant"}
    assert text_of(teacher, read(teacher, {"messages": messages}, roles=roles)) == CHAT
    kept = [{"role": "bot", "content": "hi"}, USER, ASSISTANT]
    assert "<|im_start|>bot\n" in text_of(teacher, read(teacher, {"messages": kept}))


def test_sharegpts_calls_and_system(teacher: Teacher) -> None:
    call = {"name": "add", "arguments": {"a": 2, "b": None}}
    said = turns(
        ("human", "2+2?"), ("function_call", json.dumps(call)), ("observation", "4"), ("gpt", "4.")
    )
    columns = {"conversations": said, "system": "Be brief."}
    assert labeled(teacher, columns) == [
        f"<tool_call>{json.dumps(call)}</tool_call><|im_end|>",
        "4.<|im_end|>",
    ]
    text = text_of(teacher, read(teacher, columns))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?")
    assert "<|im_start|>tool\n4<|im_end|>" in text
    bad = turns(("human", "2+2?"), ("function_call", "add(2)"))
    assert "text, but not JSON" in reason(teacher, {"conversations": bad})


def test_a_prompts_answers_have_no_labels(teacher: Teacher) -> None:
    columns = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    assert labeled(teacher, columns) == ["4.<|im_end|>"]
    assert len(labeled(teacher, columns, spans="turns")) == 4
    assert "has no assistant's message" in reason(teacher, {"prompt": [USER], "completion": [USER]})


def test_alpacas_question_is_instruction_and_input(teacher: Teacher) -> None:
    columns = {
        "instruction": "Add.",
        "input": "2 and 2",
        "output": "4.",
        "system": "Be brief.",
        "history": [["1+1?", "2."]],
    }
    assert text_of(teacher, read(teacher, columns)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n2.<|im_end|>\n<|im_start|>user\nAdd.\n2 and 2<|im_end|>\n"
        "<|im_start|>assistant\n4.<|im_end|>\n"
    )
    assert reason(teacher, columns | {"output": ""}) == "column 'output' is empty"
    assert "not text" in reason(teacher, columns | {"input": 4})
    assert "not a list of [question, answer]" in reason(teacher, columns | {"history": ["x"]})


def test_the_students_prompt_is_a_chat_too(teacher: Teacher) -> None:
    columns = {"prompt": "be kind: 2+2?", "completion": "4.", "student_prompt": "2+2?"}
    row = read(teacher, columns, chat_prompts=True)
    assert row.student_input_ids is not None
    student = teacher.tokenizer.decode(row.student_input_ids)
    assert student == CHAT.replace("What is 2+2?", "2+2?")


def test_plain_records_stay_plain(teacher: Teacher) -> None:
    columns = {"prompt": "the", "completion": " cat", "conversations": SHAREGPT}
    assert text_of(teacher, read(teacher, columns)) == "the cat"
    assert read(teacher, {"text": "the cat"} | columns).shape == "text"
    assert read(teacher, columns).shape == "prompt and completion"


def test_shapes_that_are_not_there(teacher: Teacher) -> None:
    columns = {"text": "the cat", "prompt": "x"}
    why = "--shape completion needs 'prompt' and 'completion'; its columns are 'text', 'prompt'"
    assert reason(teacher, columns, shape="completion") == why
    assert "--shape text needs" in reason(teacher, columns, shape="text", mode="generate")
    assert "not an object with a role" in reason(teacher, {"messages": [{"speaker": "x"}]})


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [((), {"a1", "a2", "b"}), (("a*",), {"b"}), (("b", "a1"), {"a2"}), (("*",), set())],
)
def test_columns_stay_out_of_meta(
    teacher: Teacher, patterns: tuple[str, ...], kept: set[str]
) -> None:
    columns = {"text": "the cat", "a1": 1, "a2": 2, "b": 3}
    row = read(teacher, columns, drop_columns=patterns)
    assert set(json.loads(row.meta or "{}")) == kept
