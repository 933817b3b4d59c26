"""Chats from the command line to shards: the labeled tokens, and the student's context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from schemas import open_label_set
from tests.labeler.chat_templates import STYLES, make_chat_tokenizer
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Run
from tests.tiny_model import make_model

FLAGS = ("--engine", "transformers", "--k", 8, "--max-length", 512, "--json")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny random teacher that thinks and calls tools."""
    path = tmp_path_factory.mktemp("qwen")
    tokenizer = make_chat_tokenizer(path, STYLES["qwen"])
    make_model(path, vocab_size=len(tokenizer), max_position_embeddings=512, eos_token_id=1)
    return path


def chats(path: Path) -> Path:
    """Write two chats to Parquet: one schema, with nulls for the keys that a message lacks."""
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "the cat"}'}}
    messages = [
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "where is the cat?"},
            {"role": "assistant", "reasoning_content": "I must look", "tool_calls": [call]},
            {"role": "tool", "content": "on the mat"},
            {"role": "assistant", "content": "the cat sat on the mat", "reasoning_content": "ah"},
        ],
        [
            {"role": "user", "content": "a dog?"},
            {"role": "assistant", "content": "it ran"},
            {"role": "user", "content": "where?"},
            {"role": "assistant", "content": "after the cat"},
        ],
    ]
    table = pa.table(
        {
            "id": ["cat", "dog"],
            "messages": messages,
            "tools": [json.dumps([{"name": "look"}]), None],
            "topic": ["cats", "dogs"],
        }
    )
    pq.write_table(table, path)
    return path


def shard_rows(out: Path) -> dict[str, dict[str, Any]]:
    rows = pl.read_parquet(out / "shards" / "*.parquet").to_dicts()
    return {row["id"]: row for row in rows}


def labeled(tokenizer: Any, ids: list[int], spans: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(s["kind"], tokenizer.decode(ids[s["start"] : s["stop"]])) for s in spans]


CAT = [
    ("thinking", "<think>\nI must look\n</think>\n\n"),
    (
        "tool_call",
        '<tool_call>\n{"name": "look", "arguments": {"at": "the cat"}}\n</tool_call>',
    ),
    ("answer", "<|im_end|>"),
    ("thinking", "<think>\nah\n</think>\n\n"),
    ("answer", "the cat sat on the mat<|im_end|>"),
]
DOG = [
    ("answer", "it ran<|im_end|>"),
    ("thinking", "<think>\n\n</think>\n\n"),
    ("answer", "after the cat<|im_end|>"),
]


@pytest.mark.slow
def test_the_assistants_turns_are_labeled(qwen: Path, tmp_path: Path, run_labeler: Run) -> None:
    source, out = chats(tmp_path / "chats.parquet"), tmp_path / "labels"
    done = run_labeler("label", source, "--model", qwen, "--out", out, *FLAGS)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    rows = shard_rows(out)
    for name, expected in (("cat", CAT), ("dog", DOG)):
        row = rows[name]
        assert labeled(tokenizer, row["input_ids"], row["spans"]) == expected
        assert row["n_labels"] == len(row["topk_ids"]) == len(row["token_logprob"])
        assert row["student_input_ids"] is None
    assert json.loads(rows["cat"]["meta"]) == {"topic": "cats"}
    assert json.loads(done.stdout)["labels"] == sum(row["n_labels"] for row in rows.values())
    assert open_label_set(out).manifest.identity.chat_template is not None
    run_labeler("verify", out, "--rescore", 2, "--model", qwen)


@pytest.mark.slow
def test_the_student_sees_less(qwen: Path, tmp_path: Path, run_labeler: Run) -> None:
    source, out = chats(tmp_path / "chats.parquet"), tmp_path / "labels"
    drop = ("--student-drop", "system", "--student-drop", "thinking", "--student-drop", "tools")
    run_labeler("label", source, "--model", qwen, "--out", out, *drop, *FLAGS)
    tokenizer = AutoTokenizer.from_pretrained(qwen)
    rows = shard_rows(out)
    row = rows["cat"]
    answers = [pair for pair in CAT if pair[0] != "thinking"]
    assert labeled(tokenizer, row["input_ids"], row["spans"]) == answers
    assert labeled(tokenizer, row["student_input_ids"], row["student_spans"]) == answers
    seen = tokenizer.decode(row["student_input_ids"])
    assert "brief" not in seen
    assert "look\n" not in seen
    assert "# Tools" not in seen
    assert rows["dog"]["student_input_ids"] is None  # nothing in it can be dropped
    run_labeler("verify", out)
    other = run_labeler("label", source, "--model", qwen, "--out", out, *FLAGS, code=2)
    assert "rendering" in other.stderr


@pytest.mark.slow
def test_generations_follow_the_students_prompt(
    qwen: Path, tmp_path: Path, run_labeler: Run
) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "labels"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a cat"}]
    source.write_text(
        json.dumps({"id": "long", "messages": messages})
        + "\n"
        + json.dumps({"id": "plain", "messages": messages[1:]})
        + "\n"
        + json.dumps({"id": "answered", "messages": [{"role": "assistant", "content": "a cat"}]})
    )
    flags = ("--mode", "generate", "--max-tokens", 6, "--samples", 2, "--temperature", 1)
    flags += ("--student-drop", "system", "--no-thinking")
    run_labeler("label", source, "--model", qwen, "--out", out, *flags, *FLAGS)
    tokenizer = AutoTokenizer.from_pretrained(qwen)
    rows = pl.read_parquet(out / "shards" / "*.parquet").to_dicts()
    assert sorted((row["id"], row["sample"]) for row in rows) == [
        ("long", 0),
        ("long", 1),
        ("plain", 0),
        ("plain", 1),
    ]
    prompt = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    for row in rows:
        generated = labeled(tokenizer, row["input_ids"], row["spans"])
        if row["id"] == "plain":
            assert row["student_input_ids"] is None
            continue
        assert labeled(tokenizer, row["student_input_ids"], row["student_spans"]) == generated
        assert tokenizer.decode(row["student_input_ids"]) == prompt + "".join(
            t for _, t in generated
        )
    run_labeler("verify", out)
    rejects = run_labeler("inspect", out, "--rejects").stdout
    assert "answered: its last message is the assistant's" in rejects


def test_a_custom_template(qwen: Path, tmp_path: Path, labeler: CommandLine) -> None:
    source, out = chats(tmp_path / "chats.parquet"), tmp_path / "labels"
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role + mark + (m.content or '') }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' + mark }}{% endif %}"
    )
    flags = ("--chat-template", template, "--template-kwargs.mark", " says ")
    flags += ("--spans", "completion", *FLAGS)
    assert labeler("label", source, "--model", qwen, "--out", out, *flags).code == 0
    tokenizer = AutoTokenizer.from_pretrained(qwen)
    row = shard_rows(out)["dog"]
    assert tokenizer.decode(row["input_ids"]).startswith("user says a dog?<|im_end|>assistant says")
    identity = open_label_set(out).manifest.identity
    assert identity.spans == "completion"
    flags = ("--chat-template", template, "--template-kwargs.mark", ": ", "--spans", "completion")
    other = labeler("label", source, "--model", qwen, "--out", out, *flags, *FLAGS)
    assert other.code == 2
    assert "chat_template" in other.err
