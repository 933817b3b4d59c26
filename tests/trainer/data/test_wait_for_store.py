"""A rank that loses the store for a while waits, says so, and continues."""

from __future__ import annotations

from itertools import count

import pytest

from schemas import LabelSetError
from trainer.data import wait_for_store as module
from trainer.data.wait_for_store import wait_for_store


def failure(cause: Exception) -> LabelSetError:
    error = LabelSetError("cannot be read", path="s3://bucket/labels/shards/part-000000.parquet")
    error.__cause__ = cause
    return error


def test_a_read_is_tried_again_until_the_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    tries = count()

    def read() -> str:
        if next(tries) < 3:
            raise failure(ConnectionResetError("gone"))
        return "rows"

    with pytest.warns(UserWarning, match="does not answer; waiting for it, 300 s") as warned:
        assert wait_for_store(read) == "rows"
    assert next(tries) == 4
    assert len(warned) == 1


def test_waiting_ends() -> None:
    def read() -> str:
        raise failure(TimeoutError())

    with pytest.raises(LabelSetError, match="cannot be read"):
        wait_for_store(read, longest=0)


@pytest.mark.parametrize("cause", [FileNotFoundError(), PermissionError(), ValueError("damaged")])
def test_what_does_not_pass_is_raised_at_once(cause: Exception) -> None:
    tries = count()

    def read() -> str:
        next(tries)
        raise failure(cause)

    with pytest.raises(LabelSetError):
        wait_for_store(read)
    assert next(tries) == 1
