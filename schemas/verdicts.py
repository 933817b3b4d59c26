"""Verdicts on the rows of a label set: JSON lines, which any judge can write.

The first line names the set and the judge: `{"verdicts_on": IDENTITY_DIGEST, "by": "checks:f"}`.
Each other line is a row: `{"id": "a", "chunk": 0, "sample": 0, "passed": true, "number": 0.5}`.
`number` and `fault`, why there is no verdict, may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.atomic import write_atomic
from schemas.errors import SoftshardsError


class RowVerdict(BaseModel):
    """The verdict on a row.

    Attributes:
        passed: whether the judge accepts the answer.
        number: its score, if it gave one.
        fault: why it could not judge the row; such a row does not pass.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    chunk: int = 0
    sample: int = 0
    passed: bool
    number: float | None = None
    fault: str | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """The row's key."""
        return self.id, self.chunk, self.sample


class _Header(BaseModel):
    verdicts_on: str
    by: str


class Verdicts(NamedTuple):
    """The content of a file.

    Attributes:
        identity_digest: of the label set that they are about.
        by: the judge.
        digest: SHA-256 of the file.
        rows: verdicts by id, chunk and sample.
        path: of the file.
    """

    identity_digest: str
    by: str
    digest: str
    rows: dict[tuple[str, int, int], RowVerdict]
    path: Path


def write_verdicts(path: Path, identity_digest: str, by: str, rows: Iterable[RowVerdict]) -> None:
    """Write a file of verdicts atomically."""
    lines = [_Header(verdicts_on=identity_digest, by=by).model_dump_json()]
    lines += [row.model_dump_json(exclude_none=True) for row in rows]
    write_atomic(path, "\n".join(lines) + "\n")


def read_verdicts(path: Path) -> Verdicts:
    """Read a file of verdicts.

    Raises:
        SoftshardsError: it is missing or something else, or judges a row twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SoftshardsError("the verdicts cannot be read", path=path) from error
    lines = content.splitlines()
    number, rows = 1, dict[tuple[str, int, int], RowVerdict]()
    try:
        header = _Header.model_validate_json(lines[0] if lines else b"")
        for number, line in enumerate(lines[1:], 2):  # noqa: B007 - named by the error
            row = RowVerdict.model_validate_json(line)
            if row.key in rows:
                name = "/".join(map(str, row.key))
                raise SoftshardsError("the row is judged twice", path=path, row=name)
            rows[row.key] = row
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SoftshardsError(
            f"line {number} is no verdict: {': '.join(filter(None, [where, first['msg']]))}",
            path=path,
            hint="write it with `labeler curate --verify ... --verdicts FILE`",
        ) from error
    return Verdicts(header.verdicts_on, header.by, sha256(content).hexdigest(), rows, path)
