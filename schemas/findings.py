"""What a check found, as a sentence for people and as fields for machines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check found.

    Attributes:
        kind: what sort of thing, in one word (docs/verify.md lists them).
        where: the file, row group, row or position concerned; empty where it is the whole set.
        what: what is wrong, in one sentence.
        hint: what to do about it, if anything can be done.
        note: worth knowing, and no fault.
    """

    kind: str
    what: str
    where: str = ""
    hint: str | None = None
    note: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    def inside(self, outer: str) -> Finding:
        """The same finding, with a file or row group that it is in."""
        return dataclasses.replace(self, where=f"{outer}, {self.where}" if self.where else outer)

    def as_json(self) -> dict[str, str | None]:
        """Its kind, place, sentence and hint."""
        return {"kind": self.kind, "where": self.where, "what": self.what, "hint": self.hint}
