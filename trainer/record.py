"""JSON files of the trainer as typed records. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import LabelSet, SoftshardsError
from schemas.atomic import write_atomic
from schemas.manifest import Identity


class Record(BaseModel):
    """A JSON file, or a part of one. Keys that only other versions know are ignored."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-able values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_atomic(path, self.to_json())

    @classmethod
    def read(cls, path: Path, what: str) -> Self:
        """Read a file.

        Args:
            path: the JSON file.
            what: its content, for the message: "results of `trainer evaluate`".

        Raises:
            SoftshardsError: it is missing, or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SoftshardsError(f"cannot be read as {what}", path=path) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise SoftshardsError(f"not {what}: {reason}", path=path) from error


class _Versioned(Record):
    version: int


def require_version(path: Path, what: str, version: int, *, named: str, again: str) -> None:
    """Refuse a file of results that another version wrote, before its other fields are read.

    Args:
        path: the JSON file.
        what: its content, as for `Record.read`.
        version: the one that can be read.
        named: the file with its verb: "the audit is".
        again: what becomes of the models without it: "audited".

    Raises:
        SoftshardsError: it is missing, something else, or of another version.
    """
    found = _Versioned.read(path, what).version
    if found != version:
        raise SoftshardsError(
            f"{named} of version {found}, this softshards writes {version}",
            path=path,
            hint=f"delete the file, or give another --out: the models are {again} again",
        )


class LabelSetRecord(Record):
    """A label set, as results and reports name it."""

    path: str
    identity: Identity
    provenance: dict[str, Any]
    rows: int
    labels: int

    @classmethod
    def of(cls, labels: LabelSet, **more: Any) -> Self:
        """Return the record of an open label set; `more` are the fields of a subclass."""
        return cls(
            path=labels.place,
            identity=labels.manifest.identity,
            provenance=labels.manifest.provenance,
            rows=labels.rows,
            labels=labels.labels,
            **more,
        )
