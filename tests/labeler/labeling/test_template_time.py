"""A template that prints the time prints the same one for every row of a label set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs import begin, plan_settings
from labeler.labeling.runs.label_run import label
from labeler.labeling.teacher.template_clock import TemplateClock
from schemas import open_label_set, scan
from schemas.manifest import read_manifest
from tests.labeler.command_line import CommandLine
from tests.labeler.conftest import Settings
from tests.tiny_model import CHAT_TEMPLATE

DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') + ' ' }}" + CHAT_TEMPLATE
LLAMA = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{{ date_string + ' ' }}" + CHAT_TEMPLATE
)
NEVER = "{% if today is defined %}{{ strftime_now('%Y') }}{% endif %}" + CHAT_TEMPLATE
MACRO = "{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() + ' ' }}" + CHAT_TEMPLATE


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that sets the time at which new label sets are started."""

    def at(moment: str) -> None:
        monkeypatch.setattr(plan_settings, "new_clock", lambda: TemplateClock(moment))

    at("2026-01-31T12:00:07")
    return at


@pytest.fixture
def dated(settings: Settings, tmp_path: Path) -> Settings:
    """Return a function that makes settings with a template."""

    def make(template: str = DATED, **changes: Any) -> LabelConfig:
        path = tmp_path / "dated.jinja"
        path.write_text(template)
        return settings(chat_template=path, max_length=128, **changes)

    return make


def write(path: Path, count: int) -> str:
    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat"}]
    path.write_text(
        "".join(json.dumps({"id": f"r{i}", "messages": turns}) + "\n" for i in range(count))
    )
    return str(path)


def texts(config: LabelConfig) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.out / "tokenizer")
    return [tokenizer.decode(ids) for ids in scan(config.out).collect()["input_ids"]]


def test_a_grown_file_finds_its_known_rows(
    dated: Settings,
    tmp_path: Path,
    set_clock: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dated()
    label([write(tmp_path / "one.jsonl", 3)], config)
    assert read_manifest(config.out).identity.template_time == "2026-01-31T12:00:07"
    set_clock("2027-02-01T01:02:03")
    capsys.readouterr()
    summary = label([write(tmp_path / "grown.jsonl", 4)], dated(append=True))
    assert "3 rows are in it already" in capsys.readouterr().err
    assert (summary.rows, summary.rejects, summary.status) == (4, 0, "complete")
    assert all(text.startswith("31 Jan 2026 12:00:07 user: ") for text in texts(config))


def test_the_same_command_resumes_on_another_day(
    dated: Settings, tmp_path: Path, set_clock: Callable[[str], None]
) -> None:
    """Also if the plan was lost: it becomes the same again."""
    config, chats = dated(), write(tmp_path / "one.jsonl", 3)
    label([chats], config)
    set_clock("2027-02-01T01:02:03")
    assert label([chats], config).units_labeled == 0
    (config.out / "plan.parquet").unlink()
    assert label([chats], config).units_labeled == 0


def test_another_day_is_another_identity(
    dated: Settings, tmp_path: Path, set_clock: Callable[[str], None]
) -> None:
    chats = write(tmp_path / "one.jsonl", 3)
    label([chats], dated())
    set_clock("2026-02-01T12:00:07")
    label([chats], dated(out=tmp_path / "later"))
    first, later = (
        open_label_set(tmp_path / name).manifest.identity for name in ("labels", "later")
    )
    assert first != later
    assert first == later.model_copy(update={"template_time": first.template_time})


@pytest.mark.usefixtures("set_clock")
@pytest.mark.parametrize(
    ("template", "changes"),
    [
        (NEVER, {}),
        (LLAMA, {"template_kwargs": {"date-string": "26 Jul 2024"}}),
        (CHAT_TEMPLATE, {}),
    ],
)
def test_a_template_that_prints_no_time_has_none(
    dated: Settings,
    tmp_path: Path,
    template: str,
    changes: dict[str, Any],
) -> None:
    """So sets of different days keep one identity."""
    config = dated(template, **changes)
    label([write(tmp_path / "one.jsonl", 2)], config)
    assert read_manifest(config.out).identity.template_time is None
    assert b"template_time" not in (config.out / "manifest.json").read_bytes()


@pytest.mark.usefixtures("set_clock")
def test_documents_have_no_time(dated: Settings, corpus: Path) -> None:
    config = dated()
    label([str(corpus)], config)
    assert read_manifest(config.out).identity.template_time is None


@pytest.mark.usefixtures("set_clock")
@pytest.mark.parametrize(("template", "start"), [(LLAMA, "31 Jan 2026 user"), (MACRO, "031 user")])
def test_other_ways_to_print_it(dated: Settings, tmp_path: Path, template: str, start: str) -> None:
    config = dated(template)
    label([write(tmp_path / "one.jsonl", 2)], config)
    assert read_manifest(config.out).identity.template_time == "2026-01-31T12:00:07"
    assert all(text.startswith(start) for text in texts(config))


def test_a_set_without_a_time_keeps_working(
    dated: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of an earlier version: resumed and appended to, its identity stays as it is."""
    config, chats = (
        dated("{{ strftime_now('%Y') }}" + CHAT_TEMPLATE),
        write(tmp_path / "a.jsonl", 3),
    )
    with monkeypatch.context() as patch:
        patch.setattr(begin, "pin_template_time", lambda teacher, identity, _: (teacher, identity))
        label([chats], config)
    before = read_manifest(config.out).identity
    assert before.template_time is None
    assert label([chats], config).units_labeled == 0
    more = dated("{{ strftime_now('%Y') }}" + CHAT_TEMPLATE, append=True)
    assert label([write(tmp_path / "grown.jsonl", 4)], more).rows == 4
    assert read_manifest(config.out).identity == before


@pytest.mark.usefixtures("set_clock")
def test_generations_are_prompted_with_it(dated: Settings, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the cat?"}\n')
    config = dated(mode="generate", max_tokens=4)
    label([str(path)], config)
    assert texts(config)[0].startswith("31 Jan 2026 12:00:07 user: the cat?")


@pytest.mark.usefixtures("set_clock")
def test_verify_renders_with_it(dated: Settings, tmp_path: Path, labeler: CommandLine) -> None:
    config = dated()
    label([write(tmp_path / "one.jsonl", 3)], config)
    found = labeler("verify", config.out)
    assert found.code == 0, found
    assert "before their last message" not in found.out
