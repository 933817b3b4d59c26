"""Batch imported rows into row groups for the spool; count rejects as they come."""

from __future__ import annotations

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.cut import SHARE_AFTER
from labeler.labelsets.exchange.convert_rows import (
    ConvertedRow,
    Reject,
    first_violation,
    make_table,
    rejected,
)
from labeler.labelsets.exchange.import_spool import Spool
from schemas.errors import SoftshardsError

ROWS = 1024
"""Most rows per row group, however few their labels."""


class Batcher:
    """Takes rows in order; rejects those that break an invariant, or repeat a key."""

    def __init__(self, spool: Spool, vocab_size: int, max_reject_share: float) -> None:
        self._spool, self._vocab_size = spool, vocab_size
        self._max_reject_share = max_reject_share
        self._pending: list[ConvertedRow] = []
        self._pending_labels = 0
        self._records = self._rejects = 0
        self._keys: set[int] = set()
        self._first_reject: Reject | None = None

    def add(self, item: ConvertedRow | Reject) -> None:
        """Add a row or a reject.

        Raises:
            SoftshardsError: too many rows are bad.
        """
        self._records += 1
        if isinstance(item, ConvertedRow):
            self._add_row(item)
        else:
            self._reject(item)
        if len(self._pending) >= ROWS or self._pending_labels >= LabelConfig.row_group_labels:
            self._flush()
        if self._records >= SHARE_AFTER:
            self._check_share()

    def finish(self) -> None:
        """Write the pending rows.

        Raises:
            SoftshardsError: too many rows are bad.
        """
        self._flush()
        self._check_share()

    def _add_row(self, row: ConvertedRow) -> None:
        key = hash((row.key["id"], row.key["chunk"], row.key["sample"]))
        if key in self._keys:
            self._reject(rejected(row.key, "id occurs twice"))
            return
        self._keys.add(key)
        self._pending.append(row)
        self._pending_labels += len(row.labels)

    def _flush(self) -> None:
        good = self._pending
        if good and first_violation(good, self._vocab_size) is not None:
            good = []
            for row in self._pending:
                reason = first_violation([row], self._vocab_size)
                if reason is None:
                    good.append(row)
                else:
                    self._reject(rejected(row.key, reason))
        if good:
            self._spool.add(make_table(good, self._vocab_size))
        self._pending, self._pending_labels = [], 0

    def _reject(self, reject: Reject) -> None:
        self._first_reject = self._first_reject or reject
        self._rejects += 1
        self._spool.reject(reject)

    def _check_share(self) -> None:
        if self._first_reject and self._rejects > self._max_reject_share * self._records:
            share = self._rejects / self._records
            raise SoftshardsError(
                f"{self._rejects} of {self._records} rows are bad ({share:.0%}, more than "
                f"--max-reject-share); the first: {self._first_reject['reason']}",
                path=self._first_reject["source"],
                row=self._first_reject["id"],
                hint="check the file, --tokenizer and --shift, or raise --max-reject-share",
            )
