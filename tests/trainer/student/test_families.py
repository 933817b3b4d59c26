"""Students of many families: in a batch = alone = plain, saved = trained; or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.student.families import FAMILIES, PAGE, table_row

ROOT = Path(__file__).parents[3]


def test_there_are_at_least_100_families() -> None:
    assert len(FAMILIES) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_is_right_or_refused(family: str) -> None:
    """Each row of the table in docs/students.md is what happens (`-rP` prints them)."""
    row = table_row(family)
    print(row)
    assert row in (ROOT / PAGE).read_text(encoding="utf-8").splitlines()


def test_the_page_has_a_row_for_each_family() -> None:
    lines = (ROOT / PAGE).read_text(encoding="utf-8").splitlines()
    table = lines[lines.index("| family | model | packed or padded by, or refused |") + 2 :]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == sorted(FAMILIES)
    refused = sum("| refused: " in line for line in table)
    assert f"{len(table) - refused} families are right, {refused} are refused" in "\n".join(lines)
