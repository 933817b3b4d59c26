"""Students of many families: packed = alone = plain, saved = trained; or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.student.families import FAMILIES, PAGE, table_row, try_family

ROOT = Path(__file__).parents[3]


def test_there_are_at_least_100_families() -> None:
    assert len(FAMILIES) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_is_right_or_refused(family: str, tmp_path: Path) -> None:
    """Each row of the table in docs/students.md is what happens (`-rP` prints them)."""
    row = table_row(family, try_family(family, tmp_path))
    print(row)
    assert row in (ROOT / PAGE).read_text(encoding="utf-8").splitlines()
