"""Canaries in the rows of a label set: how many there are, and what stands around the digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.audit.audit_results import RowKey
from trainer.audit.canary_file import CanaryRecord
from trainer.audit.read_training import Ids, TrainingGroup
from trainer.audit.training_text import TrainingText, find_digits


@dataclass(frozen=True)
class Frame:
    """A row with a canary, cut at its digits."""

    before: str
    digits: str
    after: str
    ids: Ids


class CanaryRows:
    """The canaries of a file in the rows of a label set.

    Attributes:
        rows: rows that contain each canary, by number.
        keys: of the rows with canaries.
    """

    def __init__(self, canaries: Sequence[CanaryRecord]) -> None:
        self.canaries = canaries
        self.rows: Counter[int] = Counter()
        self.keys: list[RowKey] = []
        self._frames: dict[tuple[str, str], Frame] = {}

    @property
    def frame(self) -> Frame | None:
        """A row around the digits; None where rows differ in more than digits."""
        return next(iter(self._frames.values())) if len(self._frames) == 1 else None

    def read(self, group: TrainingGroup, text: TrainingText) -> None:
        """Look for the canaries in the rows of a group."""
        if not self.canaries:
            return
        texts = text.decode_all([group.ids_of(row) for row in range(len(group))])
        for row, numbers in enumerate(find_digits(texts, [c.digits for c in self.canaries])):
            for number in numbers:
                canary = self.canaries[number]
                self.rows[canary.canary] += 1
                before, _, after = texts[row].partition(canary.digits)
                if len(self._frames) < 2:
                    frame = Frame(before, canary.digits, after, group.ids_of(row).copy())
                    self._frames.setdefault((before, after), frame)
            if numbers:
                self.keys.append(group.row(row).key)
