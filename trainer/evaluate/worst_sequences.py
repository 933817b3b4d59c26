"""The sequences on which a student is farthest from the teacher, token by token. No torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.arrow import SPAN_KINDS
from trainer.record import Record

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from trainer.data.collate import Batch
    from trainer.data.dataset import Pack
    from trainer.student.student_output import StudentOutput

MIN_LABELS = 8
"""Sequences with fewer labels rank behind all others: their mean says little."""
SHOWN_TOKENS = 96
"""Tokens of the passage that is kept of a sequence: the one with the highest sum of KL."""
SHOWN_POSITIONS = 6
SHOWN_CHOICES = 3
CUT = "\ufffd"
"""The character that incomplete bytes are decoded to."""


class Choice(Record):
    """A token that a model might continue with, and its probability."""

    text: str
    p: float


class ShownToken(Record):
    """A token of a passage; `kl` is None where it has no label."""

    text: str
    kl: float | None = None


class WorstPosition(Record):
    """A token on which student and teacher differ.

    Attributes:
        at: its index in the passage.
        kl: of the teacher from the student, in nats.
        teacher, student: the likeliest continuations. The student's are among the ids of the label
            and its own first choice.
        teacher_actual, student_actual: probabilities of the actual token.
    """

    at: int
    kl: float
    teacher: list[Choice]
    student: list[Choice]
    teacher_actual: float
    student_actual: float


class WorstSequence(Record):
    """A sequence with a high mean KL, and the passage where the KL is highest.

    Attributes:
        row: its name in the label set.
        source: the input file, "" where it is not known.
        kinds: the kinds of its spans.
        labels: its labeled positions.
        kl: their mean KL, in nats.
        start: position of the first token of the passage.
        length: tokens of the whole sequence.
        tokens: the passage.
        positions: its tokens with the highest KL, the highest first.
    """

    row: str
    source: str = ""
    kinds: list[str] = Field(default_factory=list)
    labels: int
    kl: float
    start: int
    length: int
    tokens: list[ShownToken]
    positions: list[WorstPosition]


class _Rank(NamedTuple):
    """Sequences compare by this: first whether they have enough labels, then by mean KL."""

    enough: bool
    kl: float
    number: int


class WorstSequences:
    """Collects the worst sequences of one model while it is measured.

    Args:
        limit: sequences to keep.
        tokenizer_dir: folder of the tokenizer whose ids the student has.
    """

    def __init__(self, limit: int, tokenizer_dir: Path) -> None:
        self._limit, self._numbers = limit, count(0, -1)
        self._kept: list[tuple[_Rank, WorstSequence]] = []
        self._texts = _Texts(tokenizer_dir / "tokenizer.json")

    def add(
        self,
        pack: Pack,
        batch: Batch,
        kl: Tensor,
        output: StudentOutput,
        top1: tuple[Tensor, Tensor],
    ) -> None:
        """Keep the sequences of a pack that are worse than those kept so far.

        Args:
            pack: the sequences.
            batch: the same as tensors.
            kl: [n], nats per label.
            output: the student's log-probabilities.
            top1: the student's most likely ids [n] and their log-probabilities [n].
        """
        if self._limit <= 0:
            return
        values = np.nan_to_num(kl.double().cpu().numpy(), nan=math.inf, posinf=math.inf)
        owners = batch.documents.cpu().numpy()
        for row in range(len(pack.rows)):
            labels = np.flatnonzero(owners == row)
            rank = _Rank(
                len(labels) >= MIN_LABELS, float(values[labels].mean()), next(self._numbers)
            )
            if len(self._kept) < self._limit or rank > self._kept[0][0]:
                entry = (rank, self._sequence(pack, row, batch, labels, values, output, top1))
                add = heapq.heappush if len(self._kept) < self._limit else heapq.heapreplace
                add(self._kept, entry)

    def found(self) -> list[WorstSequence]:
        """Return the kept sequences, the worst first."""
        return [sequence for _, sequence in sorted(self._kept, key=lambda e: e[0], reverse=True)]

    def _sequence(
        self,
        pack: Pack,
        row: int,
        batch: Batch,
        labels: NDArray[np.int64],
        kl: NDArray[np.float64],
        output: StudentOutput,
        top1: tuple[Tensor, Tensor],
    ) -> WorstSequence:
        window, number = pack.window, int(pack.rows[row])
        begin, end = window.token_offsets[number], window.token_offsets[number + 1]
        ids = window.tokens[begin:end].tolist()
        places = window.positions[
            window.label_offsets[number] : window.label_offsets[number + 1]
        ].astype(np.int64)
        by_token = np.full(len(ids), np.nan)
        by_token[places] = kl[labels]
        start = _worst_window(by_token)
        shown = ids[start : start + SHOWN_TOKENS]
        texts = self._texts.of_sequence(shown)
        inside = (places >= start) & (places < start + len(shown))
        order = np.argsort(-kl[labels][inside], kind="stable")[:SHOWN_POSITIONS]
        positions = []
        for place, label in zip(places[inside][order], labels[inside][order]):
            before = ids[place - 1]
            stored = batch.topk_ids[label].tolist()
            teacher = dict(zip(stored, batch.topk_logprobs[label].exp().tolist()))
            student = dict(zip(stored, output.logp[label].float().exp().tolist()))
            student[int(top1[0][label])] = float(top1[1][label].exp())
            positions.append(
                WorstPosition(
                    at=int(place) - start,
                    kl=float(kl[label]),
                    teacher=self._choices(before, teacher),
                    student=self._choices(before, student),
                    teacher_actual=float(batch.token_logprob[label].exp()),
                    student_actual=float(output.target_logp[label].exp()),
                )
            )
        kinds = sorted({SPAN_KINDS[kind] for kind in batch.kinds[labels].tolist()})
        passage = by_token[start : start + len(shown)].tolist()
        return WorstSequence(
            row=pack.keys[row],
            source=window.sources[number],
            kinds=kinds,
            labels=len(labels),
            kl=float(kl[labels].mean()),
            start=start,
            length=len(ids),
            tokens=[
                ShownToken(text=text, kl=None if math.isnan(value) else value)
                for text, value in zip(texts, passage)
            ],
            positions=positions,
        )

    def _choices(self, before: int, probabilities: dict[int, float]) -> list[Choice]:
        known = [(p, token) for token, p in probabilities.items() if token >= 0]
        best = sorted(known, key=lambda pair: (-pair[0], pair[1]))[:SHOWN_CHOICES]
        return [Choice(text=self._texts.after(before, token), p=p) for p, token in best]


def _worst_window(kl: NDArray[np.float64]) -> int:
    """Return the start of the SHOWN_TOKENS tokens with the highest sum; NaN has no label."""
    sums = np.concatenate([[0.0], np.nancumsum(np.nan_to_num(kl, nan=0.0, posinf=1e6))])
    if len(kl) <= SHOWN_TOKENS:
        return 0
    return int(np.argmax(sums[SHOWN_TOKENS:] - sums[:-SHOWN_TOKENS]))


class _Texts:
    """Ids as text; without a tokenizer file, `#id`."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer | None = None
        if file.is_file():
            self._tokenizer = Tokenizer.from_file(str(file))

    def of_sequence(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; a character cut across tokens stands at its last one."""
        found, done = [], ""
        for end in range(1, len(ids) + 1):
            text = self._decode(ids[:end])
            whole = done if text.endswith(CUT) and end < len(ids) else text
            found.append(whole[len(done) :])
            done = whole
        return found

    def after(self, before: int, token: int) -> str:
        """Return the text of a token that follows another: its space is kept."""
        first, both = self._decode([before]), self._decode([before, token])
        return both.removeprefix(first) if both.startswith(first) else self._decode([token])

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return "".join(f"#{token} " for token in ids)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
