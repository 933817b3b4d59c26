"""The text of training rows, and the tokens at its characters."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas import LabelSet, SoftshardsError
from schemas.errors import first_line
from trainer.audit.audit_results import Finding, ScannedText
from trainer.audit.patterns import Patterns, find_all
from trainer.audit.read_training import Ids, TrainingRow
from trainer.console import ProgressBar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TrainingText:
    """Decodes and encodes by a label set's tokenizer.

    Raises:
        SoftshardsError: the tokenizer cannot be loaded, or is code of its own.
    """

    def __init__(self, labels: LabelSet) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                labels.tokenizer_dir, trust_remote_code=False
            )
        except Exception as error:  # tokenizers raises nothing narrower
            raise SoftshardsError(
                f"the tokenizer cannot be loaded: {first_line(error)}",
                path=labels.tokenizer_dir,
                hint="run `labeler verify` on the label set",
            ) from error

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ids, special tokens included."""
        return self.decode_all([np.asarray(ids)])[0]

    def decode_all(self, rows: Sequence[NDArray[np.integer]]) -> list[str]:
        """Return the text of each row."""
        return self._tokenizer.batch_decode(
            [row.tolist() for row in rows],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )

    def encode(self, text: str) -> Ids:
        """Return the ids of a text, as `labeler label` encodes it."""
        return np.array(self._tokenizer.encode(text), np.int32)

    def encode_again(self, decoded: str) -> Ids:
        """Return the ids of a decoded row, whose text has its special tokens already."""
        return np.array(self._tokenizer.encode(decoded, add_special_tokens=False), np.int32)

    def token_at(self, ids: Ids, character: int) -> int:
        """Return the number of the token that holds a character of the decoded text."""
        return bisect_right(
            range(1, len(ids) + 1), character, key=lambda stop: len(self.decode(ids[:stop]))
        )

    def after(self, prefix: Ids, ids: Ids) -> str:
        """Return the text that ids add to a prefix: the space between them is kept."""
        return self.decode(np.concatenate([prefix, ids]))[len(self.decode(prefix)) :]


def scan_rows(
    rows: Sequence[TrainingRow], text: TrainingText, patterns: list[Patterns], *, show: bool
) -> ScannedText:
    """Search the text of rows by patterns.

    Args:
        rows: the rows.
        text: their tokenizer.
        patterns: what to look for.
        show: keep the values found, not only their places.
    """
    findings, values = [], dict[tuple[str, str], int]()
    characters, began = 0, time.monotonic()
    with ProgressBar("search the text", len(rows)) as progress:
        for row in rows:
            whole = text.decode(row.ids)
            characters += len(whole)
            for match in find_all(whole, patterns):
                value = whole[match.start : match.stop]
                first = text.token_at(row.ids, match.start)
                stop = text.token_at(row.ids, match.stop - 1) + 1
                findings.append(
                    Finding(
                        row=row.key,
                        group=match.group,
                        kind=match.kind,
                        start=match.start,
                        stop=match.stop,
                        token_start=first,
                        token_stop=stop,
                        span=_span_of(row, first, stop),
                        value=values.setdefault((match.kind, value), len(values)),
                        text=value if show else None,
                    )
                )
            progress.advance()
    return ScannedText(
        rows=len(rows),
        characters=characters,
        seconds=time.monotonic() - began,
        findings=findings,
    )


def _span_of(row: TrainingRow, first: int, stop: int) -> str | None:
    """Return the kind of the labeled span with any of the tokens [first, stop)."""
    return next((kind for a, b, kind in row.spans if a < stop and first < b), None)


def find_digits(texts: Sequence[str], digits: Sequence[str]) -> list[set[int]]:
    """Return, for each text, the numbers of the digit strings that it contains."""
    numbers = {value: number for number, value in enumerate(digits)}
    pattern = re.compile("|".join(map(re.escape, digits)))
    return [{numbers[found] for found in pattern.findall(text)} for text in texts]
