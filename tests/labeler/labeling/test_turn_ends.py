"""The token that ends a turn is labeled, whatever its tokenizer takes along with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.chat import chat_tokens
from labeler.labeling.rendering.messages import read_chat
from labeler.labeling.teacher.teacher import open_teacher
from tests.labeler.chat_templates import STYLES, Style, make_chat_teacher

CHAT = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "It is 6."},
]
PHI = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
RETURN = """
{%- for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}
{{- '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"""
HEADERS_ONLY = """
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
CALLS_END = """
{%- for m in messages %}{{ '<|start|>' + m.role + '<|message|>' }}
{%- if m.tool_calls %}{{ (m.tool_calls[0].function | tojson) + '<|call|>' }}
{%- else %}{{ m.content + '<|return|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"""
PHI_STYLE = Style(
    template=PHI,
    tokens=("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
    eos="<|endoftext|>",
    stop=("<|end|>",),
)


def labeled(
    path: Path,
    style: Style,
    messages: list[dict[str, Any]],
    flags: dict[str, dict[str, bool]] | None = None,
    **changes: Any,
) -> list[list[str]]:
    """Return the labeled tokens of each span; `flags` are set on added tokens by their text."""
    make_chat_teacher(path, style)
    saved = json.loads((path / "tokenizer.json").read_bytes())
    for token in saved["added_tokens"]:
        token |= (flags or {}).get(token["content"], {})
    (path / "tokenizer.json").write_text(json.dumps(saved))
    named = json.loads((path / "tokenizer_config.json").read_bytes())
    for token in named.get("added_tokens_decoder", {}).values():
        token |= (flags or {}).get(token["content"], {})
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    teacher = open_teacher(path, max_length=1024)
    config = LabelConfig(model=path, out=path, **changes)
    chat = read_chat({"messages": messages}, config)
    tokens = chat_tokens(teacher, chat, config.template_arguments, spans=config.spans)
    texts = teacher.tokenizer.convert_ids_to_tokens(tokens.ids)
    return [texts[s.start : s.stop] for s in tokens.spans]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"rstrip": True},
        {"lstrip": True},
        {"lstrip": True, "rstrip": True},
        {"rstrip": True, "normalized": True},
    ],
)
def test_an_end_token_that_takes_its_neighbors_is_labeled(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    spans = labeled(tmp_path, STYLES["chatml"], CHAT, {"<|im_end|>": flags})
    assert [span[-1] for span in spans] == ["<|im_end|>", "<|im_end|>"]
    assert ["".join(span).replace("Ġ", " ") for span in spans] == [
        "It is 4.<|im_end|>",
        "It is 6.<|im_end|>",
    ]


def test_an_empty_answer_before_a_token_that_takes_the_header_has_its_end(tmp_path: Path) -> None:
    """The line feed of the header belongs to the end token, which is labeled all the same."""
    chat = [CHAT[0], {"role": "assistant", "content": ""}, *CHAT[2:]]
    spans = labeled(tmp_path, STYLES["chatml"], chat, {"<|im_end|>": {"lstrip": True}})
    assert spans[0] == ["<|im_end|>"]
    assert spans[1][-1] == "<|im_end|>"


def test_blanks_that_an_end_token_takes_from_the_answer(tmp_path: Path) -> None:
    chat = [CHAT[0], CHAT[1] | {"content": "sat  \n"}]
    (span,) = labeled(tmp_path, STYLES["chatml"], chat, {"<|im_end|>": {"lstrip": True}})
    assert span[-1] == "<|im_end|>"
    assert "".join(span) == "sat<|im_end|>"


def test_phi_ends_every_turn(tmp_path: Path) -> None:
    """All its tokens take the whitespace after them, and the chat ends with another token."""
    rstrip = {token: {"rstrip": True} for token in PHI_STYLE.tokens}
    first, last = labeled(tmp_path, PHI_STYLE, CHAT, rstrip)
    assert first[-1] == "<|end|>"
    assert last[-2:] == ["<|end|>", "<|endoftext|>"]


@pytest.mark.parametrize("spans", ["completion", "turns", "everything"])
def test_the_end_is_labeled_with_all_spans(tmp_path: Path, spans: str) -> None:
    found = labeled(tmp_path, STYLES["chatml"], CHAT, {"<|im_end|>": {"rstrip": True}}, spans=spans)
    assert sum(span.count("<|im_end|>") for span in found if "4" in span or "6" in span) == (
        1 if spans == "completion" else 2
    )


def test_a_header_that_takes_the_answers_blanks_is_not_labeled(tmp_path: Path) -> None:
    chat = [CHAT[0], CHAT[1] | {"content": "\n sat"}]
    (span,) = labeled(tmp_path, PHI_STYLE, chat, {"<|assistant|>": {"rstrip": True}})
    assert "".join(span).startswith("sat<|end|>")


def test_an_end_token_of_single_words_is_labeled_as_it_is_read(tmp_path: Path) -> None:
    """After a word character it is no token of its own: its pieces end the turn."""
    chat = [CHAT[0], CHAT[1] | {"content": "sat"}]
    (span,) = labeled(tmp_path, STYLES["chatml"], chat, {"<|im_end|>": {"single_word": True}})
    assert "".join(span) == "sat<|im_end|>"


def test_history_that_ends_in_another_token_than_the_last_turn(tmp_path: Path) -> None:
    tokens = ("<|start|>", "<|message|>", "<|end|>", "<|return|>")
    style = Style(template=RETURN, tokens=tokens, eos="<|return|>")
    spans = labeled(tmp_path, style, CHAT)
    assert [span[-1] for span in spans] == ["<|end|>", "<|return|>"]


def test_the_header_of_the_next_turn_is_no_end(tmp_path: Path) -> None:
    style = Style(template=HEADERS_ONLY, tokens=("<|user|>", "<|assistant|>", "</s>"), eos="</s>")
    spans = labeled(tmp_path, style, CHAT)
    assert ["".join(span).replace("Ġ", " ") for span in spans] == ["It is 4.", "It is 6."]


def test_a_call_in_history_that_ends_in_a_token_of_its_own(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {"day": 2}}}
    chat = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}, *CHAT[2:]]
    tokens = ("<|start|>", "<|message|>", "<|call|>", "<|return|>")
    style = Style(template=CALLS_END, tokens=tokens, eos="<|return|>")
    spans = labeled(tmp_path, style, chat)
    assert [span[-1] for span in spans] == ["<|call|>", "<|return|>"]
