"""The shape of the house: no import circle, no name twice, docs that point at files that exist.

Who may import whom between rooms is a contract in pyproject.toml (`lint-imports`).
"""

from __future__ import annotations

import graphlib
import re
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "labeler", "trainer")
SHARED_NAMES = {"__init__.py", "__main__.py", "cli.py", "console.py"}
"""Names that mean the same in every package."""


def test_no_import_circle_between_files() -> None:
    """Imports inside functions and for type checkers count, too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    files = {name for name in graph.modules if name.split(".")[0] in PACKAGES}
    assert len(files) > 200
    imports = {name: graph.find_modules_directly_imported_by(name) & files for name in files}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_file_name_stands_twice() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found[path.name].append(str(path.relative_to(ROOT)))
    twice = {k: v for k, v in found.items() if len(v) > 1 and k not in SHARED_NAMES}
    assert not twice


def test_few_files_stand_at_the_top() -> None:
    for package in ("labeler", "trainer"):
        files = [path for path in (ROOT / package).iterdir() if path.is_file()]
        assert 0 < len(files) <= 10, package


TOP = {"schemas", "labeler", "trainer", "tests", "scripts", "benchmarks", "docs"}
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_docs_exist(page: Path) -> None:
    """A path stands from the root, or below the folder that its section's heading names."""
    for path in paths_of(page):
        assert path.exists(), f"{page.name} names {path.relative_to(ROOT)}"


def paths_of(page: Path) -> list[Path]:
    """Return the files of the project that a page names in backticks, in order."""
    found, folder = [], ROOT
    for line in page.read_text().splitlines():
        if line.startswith("## "):
            named = re.search(r"`((?:labeler|trainer|schemas)/[\w/]*)`", line)
            folder = ROOT / named[1] if named else ROOT
        for text in re.findall(r"`([\w./-]+\.(?:py|jinja|js))`", line):
            first = text.split("/")[0]
            from_root = "/" in text and first in TOP
            if from_root or folder != ROOT:
                found.append((ROOT if from_root else folder) / text)
    return found


def test_data_flow_never_returns_to_a_room() -> None:
    """Its tables name the rooms in the order in which a token passes through them."""
    rooms = [path.parent for path in paths_of(ROOT / "docs" / "data_flow.md")]
    tables = rooms[: rooms.index(ROOT / "labeler" / "labelsets" / "derive") + 1]
    house = [str(room.relative_to(ROOT)).split("/engines")[0] for room in tables]
    visited = [room for room, _ in groupby(house)]
    assert len(visited) == len(set(visited)) > 20
