from __future__ import annotations

from pathlib import Path

import pytest

from schemas.atomic import atomic_path, remove_leftovers, write_atomic


def test_failure_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "file.bin"
    write_atomic(final, b"old")

    def fail_half_way() -> None:
        with atomic_path(final) as tmp:
            tmp.write_bytes(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert final.read_bytes() == b"old"
    assert list(final.parent.iterdir()) == [final]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    leftover = tmp_path / "shards" / ".tmp-part-000000.parquet"
    leftover.write_bytes(b"half")
    keep = tmp_path / "shards" / "part-000001.parquet"
    keep.write_bytes(b"whole")
    assert remove_leftovers(tmp_path) == [leftover]
    assert keep.exists()
