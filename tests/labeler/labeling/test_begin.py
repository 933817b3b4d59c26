"""The facts that a run records at its start, and that a resumed run must repeat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, scan
from schemas.manifest import read_manifest
from tests.labeler.conftest import Settings
from tests.tiny_model import CHAT_TEMPLATE, make_model, make_tokenizer


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(answer: str) -> dict[str, Any]:
    user = {"role": "user", "content": "cat?"}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


def test_a_template_that_no_row_used_is_not_recorded(
    corpus: Path, tmp_path: Path, settings: Settings
) -> None:
    other = tmp_path / "other-template.jinja"
    other.write_text(CHAT_TEMPLATE + " ")
    config = settings()
    label([str(corpus)], config)
    assert read_manifest(config.out).identity.chat_template is None
    again = label([str(corpus)], settings(chat_template=other))
    assert again.units_labeled == 0
    chats = write(tmp_path / "chats.jsonl", chat("the dog"))
    with pytest.raises(SoftshardsError, match="chat_template: here None, asked '"):
        label([chats], settings(append=True))
    assert read_manifest(config.out).status == "complete"


def test_a_template_that_rows_used_is_identity(
    tmp_path: Path, settings: Settings, corpus: Path
) -> None:
    other = tmp_path / "other-template.jinja"
    other.write_text(CHAT_TEMPLATE.replace("assistant: ", "answer: "))
    chats = write(tmp_path / "chats.jsonl", chat("the dog"), {"text": "the cat sat on the mat"})
    config = settings()
    label([chats], config)
    assert read_manifest(config.out).identity.chat_template is not None
    with pytest.raises(SoftshardsError, match="chat_template: here '"):
        label([chats], settings(chat_template=other))
    more = write(tmp_path / "more.jsonl", chat("the other dog"))
    assert label([more], settings(append=True)).status == "complete"
    assert label([str(corpus)], settings(append=True)).status == "complete"


def test_label_sets_as_input_are_parents(tmp_path: Path, settings: Settings) -> None:
    prompts = write(tmp_path / "prompts.jsonl", *({"prompt": f"cat {i}"} for i in range(3)))
    first = settings(mode="generate", max_tokens=8, out=tmp_path / "first")
    label([prompts], first)
    second = settings(out=tmp_path / "second")
    label([str(first.out)], second)
    (parent,) = read_manifest(second.out).provenance["parents"]
    made = read_manifest(first.out)
    assert (parent["self_digest"], parent["tokenizer"]) == (
        made.self_digest,
        made.identity.tokenizer,
    )
    assert {*scan(second.out).collect()["parent_id"]} == {
        f"prompts.jsonl:{i}/0/0" for i in range(3)
    }
    third = settings(out=tmp_path / "third")
    label([str(second.out)], third)
    (parent,) = read_manifest(third.out).provenance["parents"]
    assert parent["ancestry"] == read_manifest(second.out).provenance["parents"]

    plain = write(tmp_path / "plain.jsonl", {"text": "the cat sat on the mat"})
    appended = settings(out=tmp_path / "appended")
    label([plain], appended)
    assert "parents" not in read_manifest(appended.out).provenance
    label([str(first.out)], settings(out=appended.out, append=True))
    assert [p["name"] for p in read_manifest(appended.out).provenance["parents"]] == ["first"]


def test_a_parent_with_another_tokenizer_is_refused(tmp_path: Path, settings: Settings) -> None:
    plain = write(tmp_path / "plain.jsonl", {"text": "the cat sat on the mat"})
    first = settings(out=tmp_path / "first")
    label([plain], first)
    other = tmp_path / "other-teacher"
    make_model(other, vocab_size=make_tokenizer(other, vocab_size=290) + 20)
    config = settings(model=other, out=tmp_path / "second")
    with pytest.raises(SoftshardsError, match="made with another tokenizer"):
        label([str(first.out)], config)
    assert not (config.out / "manifest.json").exists()
    shutil.rmtree(config.out)
    label([plain], config)
    with pytest.raises(SoftshardsError, match="made with another tokenizer"):
        label([str(first.out)], settings(model=other, out=config.out, append=True))
