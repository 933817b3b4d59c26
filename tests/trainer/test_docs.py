"""Every trainer command in the guides parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from trainer.cli import app
from trainer.select.select_file import read_select
from trainer.sweep.grid import read_sweep

ROOT = Path(__file__).parents[2]
GUIDES = ("trainer", "losses", "sweep", "select", "audit")
PAGES = ["README.md", *(f"docs/{name}.md" for name in GUIDES)]
COMMANDS = "train|slice|evaluate|audit|report|sweep|select"
NEEDED = ["train", "--labels", "L", "--student", "S", "--out", "O"]
"""Words that complete a line of flags alone."""


def commands(page: str) -> list[list[str]]:
    """Return the words of each command, without `trainer`; lines of flags alone follow NEEDED."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words = re.match(rf"\s*(?:torchrun .* -m )?trainer ((?:{COMMANDS}) .*)", line)
        if words:
            found.append(shlex.split(words[1], comments=True))
        elif line.startswith("    --"):
            found.append([*NEEDED, *shlex.split(line)])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    shown = commands(page)
    assert len(shown) >= 3
    for words in shown:
        if "--config" in words or "..." in words:  # the rest is in a file, or left to the reader
            continue
        command, bound, ignored = app.parse_args(words, exit_on_error=False, print_error=False)
        assert command.__name__.rstrip("_") in words[:2]  # `audit canaries`
        assert bound.arguments
        assert not ignored


def test_the_students_of_the_guide_parse(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweep.md").read_text(), flags=re.S)
    path = tmp_path / "students.yaml"
    path.write_text(block)
    assert set(yaml.safe_load(block)) == {"base", "slices", "grid", "runs"}
    names = [trial.name for trial in read_sweep(path, tmp_path).trials]
    page = (ROOT / "docs/sweep.md").read_text()
    assert len(names) == 10
    assert all(f"│ {name} " in page for name in names)


def test_the_selection_of_the_guide_parses(tmp_path: Path) -> None:
    page = (ROOT / "docs/select.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    path = tmp_path / "select.yaml"
    path.write_text(block)
    names = [each.name for each in read_select(path, tmp_path).candidates]
    assert len(names) == 12
    assert all(f"\n{name} " in page for name in names)
