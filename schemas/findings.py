"""Findings of a check, as sentences for people and as fields for machines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from schemas.printable import one_line


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of a check.

    Attributes:
        kind: its kind, in one word (docs/verify.md lists them).
        where: the file, row group, row or position concerned; empty for the whole set.
        what: what is wrong, in one sentence.
        hint: what to do about it, if anything can be done.
        note: true where it is worth knowing but not a problem.
    """

    kind: str
    what: str
    where: str = ""
    hint: str | None = None
    note: bool = False

    def __str__(self) -> str:
        return f"{one_line(self.where)}: {self.what}" if self.where else self.what

    def inside(self, outer: str) -> Finding:
        """Return the same finding, placed inside a file or row group."""
        return dataclasses.replace(self, where=f"{outer}, {self.where}" if self.where else outer)

    def renamed(self, old: str, new: str) -> Finding:
        """Return the same finding about another place, such as a URL instead of its copy."""
        where, what, hint = (
            None if text is None else text.replace(old, new)
            for text in (self.where, self.what, self.hint)
        )
        return dataclasses.replace(self, where=where or "", what=what or "", hint=hint)

    def as_json(self) -> dict[str, str | None]:
        """Return kind, place, sentence and hint as JSON values."""
        return {"kind": self.kind, "where": self.where, "what": self.what, "hint": self.hint}
