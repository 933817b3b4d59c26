"""Data on a terminal: no escape sequences, no hidden characters, no markup."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from random import Random

import pytest
from rich.table import Table
from rich.text import Text

from labeler.console import progress
from schemas.errors import SoftshardsError
from schemas.findings import Finding
from schemas.printable import UNPRINTABLE, one_line, printable
from schemas.terminal import DataConsole
from tests.labeler.command_line import CommandLine
from trainer import console as trainer_console

ROOT = Path(__file__).parents[2]

SEQUENCES = {
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "title": "\x1b]0;title\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://example.org\x1b\\",
    "C1": "\x9b31m\x9d0;t\x9c\x90q\x9c",
    "bell, backspace, delete": "\x07\x08\x7f",
    "overprint": "good\rbad\x0b\x0c",
    "bidi": "\u202egnp.exe\u2066\u2069\u061c\u200f",
    "zero width": "a\u200bb\u200c\u200d\u2060\ufeff",
    "tags": "x\U000e0041\U000e007f",
    "fillers": "\u3164\u115f\uffa0\u034f",
    "lines": "a\u2028b\u2029c",
    "surrogate": "\udcff\ud800",
}
MARKUP = ("notes[draft].md:3", "[/x]", "[bold]b[/bold]", "[link=http://x]l[/link]", ":smile:", "[")


def printed(*objects: object, width: int = 200) -> str:
    stream = io.StringIO()
    DataConsole(file=stream, width=width).print(*objects)
    return stream.getvalue()


def table_of(cell: str | Text) -> Table:
    table = Table(title=cell, caption=cell)
    table.add_column(cell)
    table.add_row(cell)
    return table


@pytest.mark.parametrize("text", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_are_escaped_wherever_they_are_printed(text: str) -> None:
    for shown in (text, Text(text), table_of(text), table_of(Text(text)), [text]):
        out = printed(shown)
        assert not UNPRINTABLE.search(out)
        out.encode()
    assert printed(text) == printable(text) + "\n"
    escaped = printable(text.replace("\\", r"\\"))
    assert ast.literal_eval(f'"{escaped}"') == text


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_printed_as_it_stands(text: str) -> None:
    for shown in (text, Text(text), table_of(text), table_of(Text(text))):
        assert text in printed(shown)


@pytest.mark.parametrize("text", ["naïve — 日本語　😀❤️ \xa0…", "a\nb", "مرحبا"])
def test_other_text_is_untouched(text: str) -> None:
    assert printable(text) == text
    assert printed(text) == text + "\n"


def test_random_text_leaves_nothing_unprintable() -> None:
    random = Random(14)
    for _ in range(1000):
        limits = random.choices((0x100, 0x3000, 0x110000), k=20)
        text = "".join(chr(random.randrange(limit)) for limit in limits)
        assert not UNPRINTABLE.search(printed(text))
        assert "\n" not in one_line(text)


def test_progress_bars_show_data_as_it_stands() -> None:
    text = "[/x]\x1b[2Jnotes[draft].md"
    for bar in (progress("rows[/x]", note=True), trainer_console.ProgressBar("[/x]", 2)._bar):
        bar.add_task(text, total=1, note=text)
        out = printed(bar.get_renderable())
        assert r"[/x]\x1b[2Jnotes[draft" in out


def test_an_id_cannot_begin_a_line() -> None:
    error = SoftshardsError("bad", path="a\nerror: b", row="r\n\x1b[2J")
    assert str(error) == r"a\nerror: b, row r\n\x1b[2J: bad"
    assert str(Finding(kind="x", what="bad", where="row a\nb")) == r"row a\nb: bad"


def test_names_and_ids_of_a_corpus(labeler: CommandLine, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    name = "notes[draft]\x1b]0;x\x07[\x7f.jsonl"
    good = {"id": "\x1b[2Jok[/x]\u202e", "text": "hello \x1b]52;c;eA==\x07 world [/x] :smile: " * 3}
    (folder / name).write_text(f"{json.dumps(good)}\nnot json [/x] \x1b[2J\n")
    for flags in ([], ["--out", "new", "--dry-run"]):
        command = ["label"] if flags else ["preview"]
        ran = labeler(*command, folder, "--model", teacher, "--max-length", 64, *flags)
        assert ran.code == 0, ran.err
        assert not UNPRINTABLE.search(ran.out + ran.err)
        assert r"notes[draft]\x1b]0;x\x07[\x7f.jsonl:1" in ran.out
        found = labeler(*command, folder, "--model", teacher, "--max-length", 64, *flags, "--json")
        assert not UNPRINTABLE.search(found.out.replace("\x7f", ""))
        assert flags or json.dumps(name)[1:-1] in found.out


def test_rejects_keep_their_names(labeler: CommandLine, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "notes[draft].jsonl").write_text('{"text": "some words to read"}\n[/x]\n')
    (tmp_path / "[b]t.jsonl").write_text('{"text": "some words to read"}\n7\n')
    command = ("label", "notes[draft].jsonl", "[b]t.jsonl", "--model", teacher, "--out", "set")
    flags = ("--engine", "transformers", "--max-length", 64, "--k", 4, "--max-reject-share", 1.0)
    assert labeler(*command, *flags).code == 0
    shown = labeler("inspect", "set", "--rejects")
    assert "notes[draft].jsonl:1: line 2 is not JSON" in shown.out
    lines = labeler("inspect", "set", "--rejects", "--json").out.splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"notes[draft].jsonl:1", "[b]t.jsonl:1"}
    assert "[draft]" in labeler("inspect", "set").out
    refused = labeler("verify", "a[/x]\x1b[2J")
    assert refused.code == 2
    assert r"a[/x]\x1b[2J" in refused.err


def test_a_configuration_with_sequences(labeler: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text('k: "\\e]0;x\\a[/x]"\n"\\e[2J[/x]": 1\n')
    refused = labeler("--config", "c.yaml", "label", "x.jsonl", "--model", "m", "--out", "o")
    assert refused.code != 0
    assert not UNPRINTABLE.search(refused.out + refused.err)


def test_consoles_are_made_in_one_place() -> None:
    """Rich's own console reads markup, and its `escape` is for one that does."""
    for package in ("labeler", "trainer", "schemas"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "rich.markup" not in text, path
            assert "from_markup" not in text, path
            if path.name != "terminal.py":
                assert " Console(" not in text, path
