"""Chat templates that loop, recurse or build gigabytes: refused in seconds, with one sentence."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from labeler.labeling.teacher import template_process
from labeler.labeling.teacher.template_clock import TemplateClock
from labeler.labeling.teacher.template_process import (
    ChatTooLong,
    LimitedTemplates,
    TemplateLimit,
    limited_templates,
)
from schemas import open_label_set
from schemas.fingerprint import sha256_json
from tests.labeler.command_line import CommandLine
from tests.labeler.forging import reseal
from tests.tiny_model import CHAT_TEMPLATE

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
LOOPS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filters": "{{ range(99999) | map('string') | map('upper') | list | sort | join }}" * 999,
    "numbers": "{% for i in range(99999) %}{{ (i ** 99999) % 7 }}{% endfor %}",
    "power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "replace": "{% set ns = namespace(x='ab') %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x.replace('a', 'aa').replace('aa', 'a') * 2 %}"
    "{% set ns.x = ns.x[:9999999] %}{% endfor %}",
}
MEMORY = {
    "multiply": "{{ 'x' * 10 ** 10 }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "justify": "{{ 'x'.ljust(9999999999) }}",
    "center": "{{ 'x' | center(9999999999) }}",
    "double": "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "lists": "{{ ([0] * 10 ** 10) | length }}",
    "indent": "{{ ('x\n' * 10 ** 6) | indent(10 ** 5) }}",
}
LONG = {
    "long": "{{ 'x' * 5000000 }}",
    "many": "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
}
ERRORS = {
    "raise": "{{ raise_exception('no') }}",
    "syntax": "{% for %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "nested": "{{ " + "(" * 5000 + " }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


def render(renderer: Any, template: str, **more: Any) -> Any:
    return renderer(
        [CHAT], tools=None, documents=None, chat_template=template, add_generation_prompt=True,
        return_assistant_tokens_mask="generation" in template, eos_token="<eos>", **more,
    )  # fmt: skip


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(template_process, "SECONDS", 2.0)
    with limited_templates() as one:
        yield one
        assert render(one, CHAT_TEMPLATE)[0], "it goes on after a limit"


@pytest.mark.parametrize(
    ("template", "message"),
    [(text, "more than 2 s|of memory") for text in LOOPS.values()]
    + [(text, "more than 1 GB of memory|more than 4 MB|more than 2 s") for text in MEMORY.values()]
    + [(text, "more than 4 MB") for text in LONG.values()],
    ids=[*LOOPS, *MEMORY, *LONG],
)
def test_limits(renderer: LimitedTemplates, template: str, message: str) -> None:
    begun, before = time.monotonic(), psutil.Process(os.getpid()).memory_info().rss
    with pytest.raises(TemplateLimit, match=message):
        render(renderer, template)
    assert time.monotonic() - begun < 10
    assert psutil.Process(os.getpid()).memory_info().rss - before < 100e6


@pytest.mark.parametrize("template", ERRORS.values(), ids=ERRORS)
def test_errors_are_those_of_the_template(renderer: LimitedTemplates, template: str) -> None:
    with pytest.raises((ValueError, TemplateLimit)) as caught:
        render(renderer, template)
    assert str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%Y') }}{{ messages | tojson }}{{ eos_token }}{{ 'é😀' }}",
    ],
)
def test_it_renders_as_transformers_does(renderer: LimitedTemplates, template: str) -> None:
    clock = TemplateClock("2026-01-31T12:00:00")
    ours = render(renderer, template, strftime_now=clock.strftime_now)
    theirs = render(render_jinja_template, template, strftime_now=clock.strftime_now)
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))


def test_rendering_is_quick() -> None:
    with limited_templates() as one:
        render(one, CHAT_TEMPLATE)
        begun = time.monotonic()
        for _ in range(200):
            render(one, CHAT_TEMPLATE)
        assert time.monotonic() - begun < 2
    children = psutil.Process(os.getpid()).children()
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.parametrize("own", [True, False], ids=["in the tokenizer", "in the manifest"])
def test_verify_refuses_a_set_with_such_a_template(
    labeler: CommandLine,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    own: bool,
) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 1.0)
    row = {"messages": [{**m, "content": m["content"] * 9} for m in CHAT]}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    flags = ("--model", teacher, "--engine", "transformers", "--max-length", 128, "--k", 4)
    assert labeler("label", "a.jsonl", *flags, "--out", "set").code == 0
    assert labeler("verify", "set").code == 0
    template = LOOPS["loops"] + CHAT_TEMPLATE
    labels = open_label_set("set")
    digest = sha256_json([template, {}])
    if own:
        config = labels.tokenizer_dir / "chat_template.jinja"
        config.write_text(template)
        out = tmp_path / "own"
        out.mkdir()
        for file in labels.tokenizer_dir.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        reseal(labels, tokenizer=out, chat_template=digest)
    else:
        given = {"chat_template": {"text": template, "arguments": {}}}
        reseal(labels, provenance=labels.manifest.provenance | given, chat_template=digest)
    forks: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    found = labeler("verify", "set")
    assert found.code == 1, found.err
    limit = "the chat template takes more than 1 s for a chat: 3 of 3 rows were not checked"
    assert found.out.count(limit) == found.out.count("the chat template") == 1
    assert len(forks) == 1, "rendered again after the limit"


def test_a_template_is_not_tried_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with another chat, nor any template once the time of all is used up."""
    with limited_templates() as one:
        with pytest.raises(ChatTooLong, match="more than 4 MB"):
            render(one, LONG["long"])
        assert render(one, LONG["long"].replace("5000000", "messages|length"))[0] == ["xx"]
        with pytest.raises(TemplateLimit, match="more than 1 GB"):
            render(one, MEMORY["multiply"])
        monkeypatch.setattr(one, "_ask", lambda *_, **__: pytest.fail("it was rendered"))
        with pytest.raises(TemplateLimit, match="more than 1 GB"):
            render(one, MEMORY["multiply"])
    monkeypatch.setattr(template_process, "TOTAL_SECONDS", 1.0)
    with limited_templates() as one, pytest.raises(TemplateLimit, match="more than 1 s in all"):
        render(one, LOOPS["loops"])


@pytest.mark.parametrize("size", [60_000_000, 70_000_000])
def test_a_huge_chat_costs_its_row_alone(size: int) -> None:
    """It reaches neither the limit of time nor of memory, which end the run."""
    chat = [{"role": "user", "content": "x" * size}]
    with limited_templates() as one:
        with pytest.raises(ChatTooLong):
            one([chat], chat_template=CHAT_TEMPLATE, eos_token="<eos>")
        assert render(one, CHAT_TEMPLATE)


def test_the_total_grows_with_the_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "TOTAL_SECONDS", 0.0)
    with limited_templates(each=0.5) as one:
        for _ in range(3):
            assert render(one, CHAT_TEMPLATE)
        with pytest.raises(TemplateLimit, match=r"more than 0 s in all and 0\.5 s per rendering"):
            render(one, LOOPS["loops"])


@pytest.mark.parametrize("command", ["label", "preview"])
@pytest.mark.parametrize("mode", ["score", "generate"])
@pytest.mark.parametrize("own", [True, False], ids=["the teacher's", "--chat-template"])
def test_a_corpus_with_such_a_template_is_refused(
    labeler: CommandLine,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    mode: str,
    *,
    own: bool,
) -> None:
    """One chat makes it loop: the row is named, and no set is begun."""
    monkeypatch.setattr(template_process, "SECONDS", 1.0)
    loop = "{% if 'trap' in messages[0].content %}" + LOOPS["loops"] + "{% endif %}" + CHAT_TEMPLATE
    answer = CHAT[1:] if mode == "score" else []
    texts = {"a": "hello", "b": "hello", "c": "trap"}
    rows = [
        {"id": name, "messages": [{"role": "user", "content": text}, *answer]}
        for name, text in texts.items()
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ["--engine", "transformers", "--max-length", 128, "--mode", mode]
    if mode == "generate":
        flags += ["--max-tokens", 4]
    if own:
        model = tmp_path / "model"
        shutil.copytree(teacher, model)
        (model / "chat_template.jinja").write_text(loop)
        flags += ["--model", model]
    else:
        (tmp_path / "loop.jinja").write_text(loop)
        flags += ["--model", teacher, "--chat-template", "loop.jinja"]
    if command == "label":
        flags += ["--out", "set"]
    found = labeler(command, "a.jsonl", *flags)
    assert found.code == 2, found.err
    assert "row c: the chat template takes more than 1 s for a chat" in found.err.replace("\n", " ")
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_chat_that_becomes_too_long_costs_its_row(
    labeler: CommandLine, teacher: Path, tmp_path: Path
) -> None:
    long = "{% if 'long' in messages[0].content %}" + LONG["long"] + "{% endif %}" + CHAT_TEMPLATE
    (tmp_path / "long.jinja").write_text(long)
    rows = [{"messages": [{**CHAT[0], "content": text}, CHAT[1]]} for text in ("a", "long", "b")]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ("--model", teacher, "--engine", "transformers", "--max-length", 128, "--k", 4)
    found = labeler("label", "a.jsonl", *flags, "--chat-template", "long.jinja", "--out", "set")
    assert found.code == 0, found.err
    rejects = labeler("inspect", "set", "--rejects").out
    assert "the chat template writes more than 4 MB for a chat" in rejects
    assert open_label_set("set").manifest.provenance["planned_rows"] == 2
