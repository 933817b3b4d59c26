from __future__ import annotations

from pathlib import Path

import pytest

from schemas import SoftshardsError
from schemas.verdicts import RowVerdict, read_verdicts, write_verdicts

ROWS = [
    RowVerdict(id="a", passed=True, number=0.5),
    RowVerdict(id="a", sample=1, passed=False, fault="time limit of 3 s"),
    RowVerdict(id="é\n\u2028/1", chunk=2, passed=True),
]


def test_verdicts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "v.jsonl"
    write_verdicts(path, "abc", "checks:f", ROWS)
    found = read_verdicts(path)
    assert (found.identity_digest, found.by) == ("abc", "checks:f")
    assert found.rows == {row.key: row for row in ROWS}
    assert len(path.read_bytes().splitlines()) == 4


HEADER = '{"verdicts_on": "abc", "by": "f"}\n'
BROKEN = {
    "empty": ("", "line 1 is no verdict"),
    "no header": ('{"id": "a", "passed": true}\n', "line 1 is no verdict: verdicts_on"),
    "no JSON": (HEADER + "passed\n", "line 2 is no verdict"),
    "no verdict": (HEADER + '{"id": "a", "passed": "perhaps"}\n', "line 2 is no verdict: passed"),
    "twice": (HEADER + '{"id": "a", "passed": true}\n' * 2, "a/0/0: the row is judged twice"),
    "nested": (HEADER + "[" * 100_000 + "\n", "line 2 is no verdict"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_another_file_is_refused(tmp_path: Path, kind: str) -> None:
    text, reason = BROKEN[kind]
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(SoftshardsError, match=reason):
        read_verdicts(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="cannot be read"):
        read_verdicts(tmp_path / "nowhere.jsonl")
