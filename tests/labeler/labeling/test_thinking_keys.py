"""Thinking under any of its keys goes to the one that the template reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labeler.labeled_chats import ASK, END, START, labeled, make_teacher

KEYS = ("reasoning_content", "reasoning", "thinking")
READS = {
    "attribute": "m.{key}",
    "item": "m['{key}']",
    "get": "m.get('{key}')",
    "present": "(m.{key} if '{key}' in m else '')",
}


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("wanted", KEYS)
def test_every_key_is_read(tmp_path: Path, wanted: str, way: str) -> None:
    thought = "{{ '<think>' + (" + READS[way].format(key=wanted) + " or '') + '</think>' }}"
    only = "{% if m.role == 'assistant' %}" + thought + "{% endif %}{{ m.content }}"
    teacher = make_teacher(tmp_path, START + only + END + ASK)
    for given in KEYS:
        answer = {"role": "assistant", "content": "4", given: "two and two"}
        record = {"messages": [{"role": "user", "content": "2+2?"}, answer]}
        assert labeled(teacher, record) == ["<think>two and two</think>4<|im_end|>"], given
    both = {"reasoning_content": "two and two", "reasoning": None, "thinking": ""}
    asked = {"role": "user", "content": "2+2?"}
    thought = {"role": "assistant", "content": "4", **both}
    assert labeled(teacher, {"messages": [asked, thought]}) == [
        "<think>two and two</think>4<|im_end|>"
    ]
