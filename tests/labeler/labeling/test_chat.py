"""Spans of chats, token by token, against renderings written out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from labeler.labeling.inputs.read_records import ArrowColumns
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.chat import chat_tokens, prompt_tokens
from labeler.labeling.rendering.messages import read_chat
from labeler.labeling.rendering.spans import BadRecord, Tokens
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from schemas import SoftshardsError
from tests.labeler.chat_templates import (
    STYLES,
    Style,
    make_chat_teacher,
    make_chat_tokenizer,
)
from tests.tiny_model import TEXT

Segments = list[tuple[str, str | None]]
"""Pieces of text, each with the kind of its labels."""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Teacher]:
    """Make a teacher of each style, without weights."""
    return {
        name: open_teacher(make_chat_teacher(tmp_path_factory.mktemp(name), style), max_length=1024)
        for name, style in STYLES.items()
    }


def rendered(teacher: Teacher, columns: dict[str, Any], **changes: Any) -> Tokens:
    config = LabelConfig(model=teacher.path, out=teacher.path, **changes)
    return chat_tokens(
        teacher, read_chat(columns, config), config.template_arguments, spans=config.spans
    )


def kinds(tokens: Tokens) -> list[str | None]:
    labeled = {t: span.kind for span in tokens.spans for t in range(span.start, span.stop)}
    return [labeled.get(t) for t in range(len(tokens.ids))]


def segmented(teacher: Teacher, segments: Segments) -> tuple[list[int], list[str | None]]:
    """Tokenize segments one by one; return ids and kinds. The first token has no label."""
    pieces = [(teacher.tokenizer.encode(t, add_special_tokens=False), kind) for t, kind in segments]
    found = [kind for ids, kind in pieces for _ in ids]
    return [i for ids, _ in pieces for i in ids], [None, *found[1:]]


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call{name:0>5}", "type": "function", "function": function}


CHAT = [user("the cat?"), assistant("sat"), user("ünd\n"), assistant("\n the dog 🐕  ")]
TOOLS = [{"name": "f"}]
TOOL_CHAT = [
    system("be brief"),
    user("go"),
    assistant(None, tool_calls=[call("f", x=1), call("g")]),
    tool("r1"),
    assistant("so"),
    user("again"),
    assistant(None, tool_calls=[call("f", x=2)]),
    tool("r2"),
    assistant("done"),
]
THOUGHTS = [
    user("q"),
    assistant("a", reasoning_content="hm"),
    user("r"),
    assistant("<think>\nso\n</think>\n\nb"),
]
AGENT = [
    user("q"),
    assistant("I look", reasoning_content="hm", tool_calls=[call("f", x=1), call("g")]),
    tool("r1"),
    tool("r2"),
    assistant("b", reasoning_content="so"),
]
IM_USER, IM_ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
LLAMA_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA_ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Segments]] = [
    (
        "chatml",
        {"messages": CHAT},
        {},
        [
            ("<|im_start|>system\nBe kind.<|im_end|>\n", None),
            (f"{IM_USER}the cat?<|im_end|>\n{IM_ASSISTANT}", None),
            ("sat<|im_end|>", "answer"),
            (f"\n{IM_USER}ünd\n<|im_end|>\n{IM_ASSISTANT}", None),
            ("\n the dog 🐕  <|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "chatml-eos",
        {"messages": [system(""), user("x"), assistant(""), assistant("y"), user("z")]},
        {},
        [
            (f"<|im_start|>system\n<|im_end|>\n{IM_USER}x<|im_end|>\n{IM_ASSISTANT}", None),
            ("<|im_end|>", "answer"),
            (f"\n{IM_ASSISTANT}", None),
            ("y<|im_end|>", "answer"),
            (f"\n{IM_USER}z<|im_end|>\n", None),
        ],
    ),
    (
        "chatml-eos",
        {"messages": [user("x"), assistant(""), assistant("y")]},
        {},
        [
            ("<|im_start|>system\nBe kind.<|im_end|>\n", None),
            (f"{IM_USER}x<|im_end|>\n{IM_ASSISTANT}", None),
            ("<|im_end|>", "answer"),
            (f"\n{IM_ASSISTANT}", None),
            ("y<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "chatml",
        {"messages": CHAT},
        {"spans": "completion"},
        [
            ("<|im_start|>system\nBe kind.<|im_end|>\n", None),
            (f"{IM_USER}the cat?<|im_end|>\n{IM_ASSISTANT}sat<|im_end|>\n", None),
            (f"{IM_USER}ünd\n<|im_end|>\n{IM_ASSISTANT}", None),
            ("\n the dog 🐕  <|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "chatml",
        {"messages": CHAT},
        {"spans": "turns"},
        [
            ("<|im_start|>system\nBe kind.<|im_end|>\n", None),
            (IM_USER, None),
            ("the cat?", "prompt"),
            (f"<|im_end|>\n{IM_ASSISTANT}", None),
            ("sat<|im_end|>", "answer"),
            (f"\n{IM_USER}", None),
            ("ünd\n", "prompt"),
            (f"<|im_end|>\n{IM_ASSISTANT}", None),
            ("\n the dog 🐕  <|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "chatml",
        {"messages": CHAT},
        {"spans": "everything"},
        [
            ("<|im_start|>system\nBe kind.<|im_end|>\n", "prompt"),
            (f"{IM_USER}the cat?<|im_end|>\n{IM_ASSISTANT}", "prompt"),
            ("sat<|im_end|>", "answer"),
            (f"\n{IM_USER}ünd\n<|im_end|>\n{IM_ASSISTANT}", "prompt"),
            ("\n the dog 🐕  <|im_end|>", "answer"),
            ("\n", "prompt"),
        ],
    ),
    (
        "llama",
        {"messages": CHAT},
        {},
        [
            (f"<|begin_of_text|>{LLAMA_USER}the cat?<|eot_id|>{LLAMA_ASSISTANT}", None),
            ("sat<|eot_id|>", "answer"),
            (f"{LLAMA_USER}ünd<|eot_id|>{LLAMA_ASSISTANT}", None),
            ("the dog 🐕<|eot_id|>", "answer"),
        ],
    ),
    (
        "llama",
        {"messages": TOOL_CHAT[1:5], "tools": TOOLS},
        {},
        [
            ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", None),
            (f'Tools: [{{"name": "f"}}]<|eot_id|>{LLAMA_USER}go<|eot_id|>{LLAMA_ASSISTANT}', None),
            ('<|python_tag|>{"name": "f", "arguments": {"x": 1}}', "tool_call"),
            ('{"name": "g", "arguments": {}}<|eom_id|>', "tool_call"),
            ('<|start_header_id|>ipython<|end_header_id|>\n\n"r1"<|eot_id|>', None),
            (LLAMA_ASSISTANT, None),
            ("so<|eot_id|>", "answer"),
        ],
    ),
    (
        "mistral",
        {"messages": TOOL_CHAT, "tools": TOOLS},
        {},
        [
            ("<s>[INST] go[/INST]", None),
            ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "call0000f"}', "tool_call"),
            (', {"name": "g", "arguments": {}, "id": "call0000g"}]</s>', "tool_call"),
            ('[TOOL_RESULTS] {"content": "r1"}[/TOOL_RESULTS]', None),
            (" so</s>", "answer"),
            ('[AVAILABLE_TOOLS] [{"name": "f"}][/AVAILABLE_TOOLS]', None),
            ("[INST] be brief\n\nagain[/INST]", None),
            ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 2}, "id": "call0000f"}]', "tool_call"),
            ("</s>", "tool_call"),
            ('[TOOL_RESULTS] {"content": "r2"}[/TOOL_RESULTS]', None),
            (" done</s>", "answer"),
        ],
    ),
    (
        "mistral",
        {"messages": [system("be brief"), user(""), *CHAT[1:]]},
        {},
        [
            ("<s>[INST] [/INST]", None),
            (" sat</s>", "answer"),
            ("[INST] be brief\n\nünd\n[/INST]", None),
            (" the dog 🐕</s>", "answer"),
        ],
    ),
    (
        "gemma",
        {"messages": [system("be brief"), *CHAT]},
        {},
        [
            ("<bos><start_of_turn>user\nbe brief\n\nthe cat?<end_of_turn>\n", None),
            ("<start_of_turn>model\n", None),
            ("sat<end_of_turn>", "answer"),
            ("\n<start_of_turn>user\nünd<end_of_turn>\n<start_of_turn>model\n", None),
            ("the dog 🐕<end_of_turn>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "qwen",
        {"messages": THOUGHTS},
        {},
        [
            (f"{IM_USER}q<|im_end|>\n{IM_ASSISTANT}", None),
            ("a<|im_end|>", "answer"),
            (f"\n{IM_USER}r<|im_end|>\n{IM_ASSISTANT}", None),
            ("<think>\nso\n</think>\n\n", "thinking"),
            ("b<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "qwen",
        {"messages": AGENT, "tools": TOOLS},
        {},
        [
            ('<|im_start|>system\n# Tools\n[{"name": "f"}]<|im_end|>\n', None),
            (f"{IM_USER}q<|im_end|>\n{IM_ASSISTANT}", None),
            ("<think>\nhm\n</think>\n\n", "thinking"),
            ("I look\n", "answer"),
            ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n', "tool_call"),
            ('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>', "tool_call"),
            ("<|im_end|>", "answer"),
            ("\n<|im_start|>user\n<tool_response>\nr1\n</tool_response>\n", None),
            (f"<tool_response>\nr2\n</tool_response><|im_end|>\n{IM_ASSISTANT}", None),
            ("<think>\nso\n</think>\n\n", "thinking"),
            ("b<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (  # the empty thinking is part of the generation prompt, not of the turn
        "qwen",
        {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]},
        {"thinking": False},
        [
            (f"{IM_USER}q<|im_end|>\n{IM_ASSISTANT}", None),
            ("a<|im_end|>", "answer"),
            (f"\n{IM_USER}r<|im_end|>\n{IM_ASSISTANT}<think>\n\n</think>\n\n", None),
            ("b<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "marked",
        {"messages": [user("x"), assistant("y"), assistant(" z")]},
        {},
        [
            (f"{IM_USER}x<|im_end|>\n{IM_ASSISTANT}", None),
            ("y<|im_end|>", "answer"),
            (f"\n{IM_ASSISTANT}", None),
            (" z<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "marked",
        {"messages": [user("x"), assistant("y"), user("y"), assistant("y")]},
        {"spans": "completion"},
        [
            (f"{IM_USER}x<|im_end|>\n{IM_ASSISTANT}y<|im_end|>\n", None),
            (f"{IM_USER}y<|im_end|>\n{IM_ASSISTANT}", None),
            ("y<|im_end|>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "headers",
        {"messages": [user("x"), assistant("y"), user("y"), assistant("\ny")]},
        {},
        [
            ("<|user|>\nx</s>\n<|assistant|>\n", None),
            ("y</s>", "answer"),
            ("\n<|user|>\ny</s>\n<|assistant|>\n", None),
            ("\ny</s>", "answer"),
            ("\n", None),
        ],
    ),
    (
        "endless",
        {"messages": [user("x"), assistant("y  "), user("y"), assistant("\ny\n\n")]},
        {},
        [
            ("user: x\nassistant: ", None),
            ("y  ", "answer"),
            ("\nuser: y\nassistant: ", None),
            ("\ny\n\n", "answer"),
            ("\n", None),
        ],
    ),
]


@pytest.mark.parametrize(
    ("style", "columns", "changes", "segments"),
    CASES,
    ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)],
)
def test_spans_match_the_rendering_written_by_hand(
    teachers: dict[str, Teacher],
    style: str,
    columns: dict[str, Any],
    changes: dict[str, Any],
    segments: Segments,
) -> None:
    teacher = teachers[style]
    tokens = rendered(teacher, columns, **changes)
    ids, wanted = segmented(teacher, segments)
    assert tokens.ids == ids
    assert kinds(tokens) == wanted


@pytest.mark.parametrize("style", STYLES)
def test_the_teacher_sees_what_transformers_renders(
    teachers: dict[str, Teacher], style: str
) -> None:
    teacher = teachers[style]
    tokenizer = teacher.tokenizer
    tokens = rendered(teacher, {"messages": CHAT})
    theirs = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True)
    assert tokens.ids == theirs["input_ids"]
    if style == "marked":  # its mask, without the line feed after the end of each turn
        mask = theirs["assistant_masks"]
        ends = [t for t in range(len(mask)) if mask[t] and not (mask[t + 1 :] or [0])[0]]
        assert kinds(tokens) == [
            "answer" if flag and t not in ends else None for t, flag in enumerate(mask)
        ]
    config = LabelConfig(model=teacher.path, out=teacher.path)
    prompt = prompt_tokens(teacher, read_chat({"messages": CHAT[:1]}, config), {})
    asked = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True)["input_ids"]
    assert prompt.ids == asked


# Turns are decoded from their labels: any text but the characters that templates strip.
texts = st.text(
    st.one_of(st.sampled_from("ab \n\té🐕'"), st.characters(exclude_categories=["Cs", "Co"])),
    max_size=12,
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    chat = [system(draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        chat += [user(draw(texts)), assistant(draw(texts))]
    return chat


def verbatim(end: str) -> Callable[[str, bool], str]:
    return lambda text, _: text + end


RENDERED_TURN: dict[str, Callable[[str, bool], str]] = {
    "chatml": verbatim("<|im_end|>"),
    "chatml-eos": verbatim("<|im_end|>"),
    "llama": lambda text, _: text.strip() + "<|eot_id|>",
    "mistral": lambda text, _: " " + text.strip() + "</s>",
    "gemma": lambda text, _: text.strip() + "<end_of_turn>",
    "qwen": lambda text, last: ("<think>\n\n</think>\n\n" if last else "") + text + "<|im_end|>",
    "marked": verbatim("<|im_end|>"),
    "headers": verbatim("</s>"),
}


@pytest.mark.parametrize("style", RENDERED_TURN)
@given(messages=conversations())
@hypothesis_settings(max_examples=40)
def test_labels_decode_to_the_assistants_turns(
    teachers: dict[str, Teacher], style: str, messages: list[dict[str, Any]]
) -> None:
    teacher = teachers[style]
    tokens = rendered(teacher, {"messages": messages})
    labeled = [i for i, kind in zip(tokens.ids, kinds(tokens), strict=True) if kind]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    turns = [RENDERED_TURN[style](text, n == len(answers) - 1) for n, text in enumerate(answers)]
    assert teacher.tokenizer.decode(labeled) == "".join(turns)
    everything = rendered(teacher, {"messages": messages}, spans="everything")
    assert [None if k == "prompt" else k for k in kinds(everything)] == kinds(tokens)
    assert kinds(everything).count(None) == 1


@pytest.mark.parametrize("trim", [False, True])
def test_a_token_that_is_partly_the_templates_has_no_label(
    teachers: dict[str, Teacher], tmp_path: Path, trim: bool
) -> None:
    """` the` includes the template's space; offsets without spaces must not hide that."""
    tokenizer = make_chat_tokenizer(tmp_path, STYLES["endless"])
    if trim:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((teachers["endless"].path / "config.json").read_bytes())
    teacher = open_teacher(tmp_path, max_length=64)
    tokens = rendered(teacher, {"messages": [user("x"), assistant("the cat dog")]})
    (span,) = tokens.spans
    labeled = [teacher.tokenizer.decode([i]) for i in tokens.ids[span.start - 1 : span.stop]]
    assert labeled == [" the", " cat", " dog"]


def test_a_tokenizer_that_puts_spaces_before_words(tmp_path: Path) -> None:
    """Like Llama 2's: a space before each piece of text, and byte tokens for unknown characters."""
    style = STYLES["mistral"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", *style.tokens, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    path = make_chat_teacher(tmp_path, style)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = style.template
    fast.save_pretrained(path)
    teacher = open_teacher(path, max_length=64)
    assert "▁the▁c" in teacher.tokenizer.get_vocab()
    (segments,) = (case[3] for case in CASES if case[0] == "mistral" and "tools" not in case[1])
    tokens = rendered(teacher, {"messages": [system("be brief"), user(""), *CHAT[1:]]})
    ids, wanted = segmented(teacher, segments)
    assert tokens.ids == ids
    assert kinds(tokens) == wanted


def with_specials(path: Path, style: Style, single: str) -> Teacher:
    """Make a teacher whose tokenizer adds the special tokens in `single`."""
    make_chat_teacher(path, style)
    tokenizer = open_teacher(path, max_length=64).tokenizer
    names = [name for name in (style.bos, style.eos) if name]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(n, tokenizer.convert_tokens_to_ids(n)) for n in names]
    )
    tokenizer.save_pretrained(path)
    return open_teacher(path, max_length=64)


def test_bos_occurs_once(tmp_path: Path) -> None:
    teacher = with_specials(tmp_path, STYLES["mistral"], "<s> $A")
    config = LabelConfig(model=tmp_path, out=tmp_path)
    bos = teacher.tokenizer.bos_token_id
    assert teacher.tokenizer.encode("the cat")[0] == bos
    chat = read_chat({"messages": CHAT}, config)
    assert chat_tokens(teacher, chat, {}, spans="assistant").ids.count(bos) == 1
    assert prompt_tokens(teacher, chat, {}).ids.count(bos) == 1
    assert teacher.encode("<s>[INST] x[/INST]") == teacher.encode("[INST] x[/INST]")
    assert teacher.encode("the cat").count(bos) == 1


def test_a_prompt_is_not_ended_by_the_tokenizer(tmp_path: Path) -> None:
    teacher = with_specials(tmp_path, STYLES["mistral"], "<s> $A </s>")
    eos = teacher.tokenizer.eos_token_id
    assert teacher.encode("the cat")[-1] == eos
    assert teacher.encode_prompt("the cat") == teacher.encode("the cat")[:-1]
    assert teacher.encode_prompt("the cat</s>") == teacher.encode("the cat")


def test_messages_from_parquet_and_json(teachers: dict[str, Teacher]) -> None:
    """Null keys of structs vanish, JSON text is read, arguments in JSON become objects."""
    teacher = teachers["mistral"]
    plain = {"messages": TOOL_CHAT, "tools": TOOLS}
    nulls = {"name": None, "tool_calls": None, "reasoning_content": None}
    structs = [nulls | message for message in TOOL_CHAT]
    for message in structs:
        if message["tool_calls"]:
            message["tool_calls"] = [
                c
                | {
                    "function": c["function"]
                    | {"arguments": c["function"]["arguments"] | {"y": None}}
                }
                for c in message["tool_calls"]
            ]
    as_json = [
        m
        | {
            "tool_calls": [
                c
                | {
                    "function": c["function"]
                    | {"arguments": json.dumps(c["function"]["arguments"])}
                }
                for c in m["tool_calls"]
            ]
        }
        if "tool_calls" in m
        else m
        for m in TOOL_CHAT
    ]
    expected = rendered(teacher, plain)
    columns = ArrowColumns({"messages": structs, "tools": TOOLS})
    assert rendered(teacher, columns) == expected
    assert rendered(teacher, {"messages": as_json, "tools": json.dumps(TOOLS)}) == expected
    assert rendered(teacher, {n: json.dumps(v) for n, v in plain.items()}) == expected


@pytest.mark.parametrize(
    ("style", "columns", "reason"),
    [
        ("mistral", {"messages": [user("x"), user("y")]}, "user and assistant must take turns"),
        ("chatml", {"messages": [user("x")]}, "nothing to label"),
        ("chatml", {"messages": []}, "has no messages"),
        ("chatml", {"messages": "["}, "text, but not JSON"),
        ("chatml", {"messages": [{"content": "x"}]}, "not an object with a role"),
        ("chatml", {"messages": ["x"]}, "not an object with a role"),
        ("chatml", {"messages": CHAT, "tools": 3}, "'tools' is a int"),
        ("chatml", {"messages": [assistant("\ue0f0")]}, "needs itself"),
        ("chatml", {"messages": [user("x"), assistant(["y"])]}, "chat template refuses"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_a_bad_record(
    teachers: dict[str, Teacher], style: str, columns: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadRecord, match=reason):
        rendered(teachers[style], columns)


def test_a_template_that_rewrites_turns_is_refused(tmp_path: Path) -> None:
    """If a turn cannot be located exactly, the record is rejected, with a way out in the reason."""
    count = "{{ messages | map(attribute='content') | join | length }}" + STYLES["chatml"].template
    style = Style(template=count, tokens=STYLES["chatml"].tokens)
    teacher = open_teacher(make_chat_teacher(tmp_path / "count", style), max_length=64)
    with pytest.raises(BadRecord, match=r"message 1 cannot be located exactly; give a template"):
        rendered(teacher, {"messages": [user("x"), assistant("a long answer")]})
    # All turns but the last in capitals: the text before the last turn equals its prompt.
    shout = STYLES["chatml"].template.replace(
        "m.content", "(m.content if loop.last else m.content | upper)"
    )
    prompt = shout.replace("loop.last", "(loop.last and not add_generation_prompt)")
    style = Style(template=prompt, tokens=STYLES["chatml"].tokens)
    teacher = open_teacher(make_chat_teacher(tmp_path / "shout", style), max_length=64)
    tokens = rendered(teacher, {"messages": CHAT}, spans="completion")
    (span,) = tokens.spans
    labeled = teacher.tokenizer.decode(tokens.ids[span.start : span.stop])
    assert labeled == "\n the dog 🐕  <|im_end|>"


def test_a_slow_tokenizer_is_refused(teachers: dict[str, Teacher]) -> None:
    class Slow:
        """A tokenizer that renders chats but gives no offsets."""

        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(teachers["chatml"].tokenizer, name)

    teacher = Teacher(**vars_of(teachers["chatml"]) | {"load_tokenizer": Slow})
    with pytest.raises(SoftshardsError, match="chats need a fast tokenizer"):
        rendered(teacher, {"messages": CHAT})


def vars_of(teacher: Teacher) -> dict[str, Any]:
    return {name: getattr(teacher, name) for name in Teacher.__dataclass_fields__}


def test_template_arguments_reach_the_template(tmp_path: Path) -> None:
    template = (
        "{{ my_mood }} {{ enable_thinking }} {{ n + 1 }}"
        "{% for d in documents or [] %} {{ d.title }}{% endfor %}"
    )
    path = make_chat_teacher(tmp_path, STYLES["chatml"])
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    teacher = open_teacher(path, max_length=64, chat_template=file)
    config = LabelConfig(
        model=path, out=path, thinking=False, template_kwargs={"my-mood": "glad", "n": "3"}
    )
    chat = read_chat({"messages": [user("x")], "documents": [{"title": "T"}]}, config)
    text = teacher.tokenizer.decode(prompt_tokens(teacher, chat, config.template_arguments).ids)
    assert text == "glad False 4 T"
    with pytest.raises(SoftshardsError, match="chat template cannot be read"):
        open_teacher(path, max_length=64, chat_template=tmp_path / "none.jinja")
