"""Imported rows to row groups in the spool; rejects, and their share, counted as they come."""

from __future__ import annotations

from typing import Any

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.cut import SHARE_AFTER
from labeler.labelsets.exchange.convert_rows import Taken, problem_of, table_of
from labeler.labelsets.exchange.import_spool import Spool
from schemas import SoftshardsError

ROWS = 1024
"""Rows of a row group at most, however few their labels."""
REJECT = ("id", "chunk", "sample", "source", "reason")


class Gathering:
    """Takes rows in order; a row that breaks an invariant, or has another's key, is a reject."""

    def __init__(self, spool: Spool, vocab_size: int, max_reject_share: float) -> None:
        self._spool, self._vocab_size, self._share = spool, vocab_size, max_reject_share
        self._waiting: list[Taken] = []
        self._labels = self._records = self._bad = 0
        self._keys: set[int] = set()
        self._first: dict[str, Any] = {}

    def take(self, item: Taken | dict[str, Any]) -> None:
        """Keep a row, or what is said of a bad one.

        Raises:
            SoftshardsError: too many are bad.
        """
        self._records += 1
        if isinstance(item, dict):
            self._reject(item)
        else:
            key = hash(tuple(item.columns[name] for name in REJECT[:3]))
            if key in self._keys:
                self._reject(item.columns | {"reason": "id occurs twice"})
            else:
                self._keys.add(key)
                self._waiting.append(item)
                self._labels += len(item.labels)
        if len(self._waiting) >= ROWS or self._labels >= LabelConfig.row_group_labels:
            self._flush()
        if self._records >= SHARE_AFTER:
            self._check_share()

    def finish(self) -> None:
        """Keep what is still waiting.

        Raises:
            SoftshardsError: too many are bad.
        """
        self._flush()
        self._check_share()

    def _flush(self) -> None:
        good = self._waiting
        if good and problem_of(good, self._vocab_size) is not None:
            told = [(row, problem_of([row], self._vocab_size)) for row in good]
            good = [row for row, problem in told if problem is None]
            for row, problem in told:
                if problem is not None:
                    self._reject(row.columns | {"reason": problem})
        if good:
            self._spool.add(table_of(good, self._vocab_size))
        self._waiting, self._labels = [], 0

    def _reject(self, item: dict[str, Any]) -> None:
        self._first = self._first or item
        self._bad += 1
        self._spool.reject({name: item[name] for name in REJECT})

    def _check_share(self) -> None:
        if self._bad > self._share * self._records:
            raise SoftshardsError(
                f"{self._bad} of {self._records} rows are bad ({self._bad / self._records:.0%}, "
                f"more than --max-reject-share); the first: {self._first['reason']}",
                path=self._first["source"],
                row=self._first["id"],
                hint="check the file, --tokenizer and --shift, or raise --max-reject-share",
            )
