"""Labels of one tokenizer for a student of another that shares almost all tokens with it.

Qwen2.5 and Qwen3, say, differ in a few added tokens. Ids are matched by the token's string. What
the student's vocabulary does not have becomes part of the tail; rows with such a token in the input
cannot be shown to the student and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from schemas import Labels, LabelSet, decode
from schemas.codec import LABEL_COLUMNS, PAD_ID
from schemas.errors import IdentityError

pc: Any = pyarrow.compute

MIN_SHARED = 0.95
"""Share of the teacher's ids that a student must know: below, it is another tokenizer."""
SAMPLE_LABELS = 50_000


@dataclass(frozen=True)
class VocabMap:
    """From the teacher's ids to the student's.

    Attributes:
        ids: int32 [teacher's vocabulary], the student's id of the same token, or PAD_ID.
        student_vocab: number of the student's real ids.
    """

    ids: NDArray[np.int32]
    student_vocab: int

    def knows(self, tokens: pa.ListArray) -> NDArray[np.bool_]:
        """Bool [rows]: whether the student has every token of the row; null rows count as known."""
        known = self.ids[tokens.flatten().to_numpy()] != PAD_ID
        rows = np.repeat(np.arange(len(tokens)), pc.list_value_length(tokens).fill_null(0))
        return np.bincount(rows[~known], minlength=len(tokens)) == 0

    def keep(self, table: pa.Table) -> pa.Table:
        """The rows whose input the student can be shown: its own where it has one."""
        student = table["student_input_ids"]
        tokens = pc.if_else(pc.is_valid(student), student, table["input_ids"]).combine_chunks()
        known = self.knows(tokens)
        return table if known.all() else table.filter(pa.array(known))

    def map_tokens(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Ids of rows that `keep` kept."""
        return self.ids[tokens]

    def map_labels(self, labels: Labels) -> Labels:
        """The labels with the student's ids; the mass of ids it does not have joins the tail.

        Drawn ids that it does not have are left out.

        Lists stay most likely first, padding last. `entropy` and `log_normalizer` stay as they
        are: they are about the teacher's vocabulary.
        """
        labels = self._map_draws(labels)
        known = labels.topk_ids != PAD_ID
        ids = self._map_ids(labels.topk_ids)
        lost = known & (ids == PAD_ID)
        if not lost.any():
            return replace(labels, topk_ids=ids)
        masses = np.where(lost, labels.topk_logprobs, -np.inf)
        tail = np.logaddexp(labels.tail_logprob, np.logaddexp.reduce(masses, axis=1))
        order = np.argsort(ids == PAD_ID, axis=1, kind="stable")
        logprobs = np.where(lost, -np.inf, labels.topk_logprobs)
        return replace(
            labels,
            topk_ids=np.take_along_axis(ids, order, 1),
            topk_logprobs=np.take_along_axis(logprobs, order, 1).astype(np.float32),
            tail_logprob=tail.astype(np.float32),
        )

    def _map_ids(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        known = ids != PAD_ID
        return np.where(known, self.ids[np.where(known, ids, 0)], np.int32(PAD_ID))

    def _map_draws(self, labels: Labels) -> Labels:
        if labels.sample_ids is None or labels.sample_counts is None:
            return labels
        ids = self._map_ids(labels.sample_ids)
        counts = np.where(ids == PAD_ID, np.int32(0), labels.sample_counts)
        return replace(labels, sample_ids=ids, sample_counts=counts)


@dataclass(frozen=True)
class Coverage:
    """What of a label set survives, each a share from 0 to 1, and how many rows were looked at."""

    ids: float
    rows: float
    labels: float
    mass: float
    sample_rows: int

    def __str__(self) -> str:
        return (
            f"{self.ids:.2%} of the teacher's ids are the student's too; in a sample of "
            f"{self.sample_rows} rows {self.rows:.2%} of the rows, {self.labels:.3%} of the "
            f"labeled ids and {self.mass:.3%} of their mass (rows with other tokens in the input "
            "are left out, other labels join the tail)"
        )


def read_vocab_map(labels: LabelSet, student: Path) -> VocabMap:
    """Match the vocabularies of a label set's teacher and of a student by the tokens' strings.

    Raises:
        IdentityError: either has no `tokenizer.json`, or they share too little.
    """
    theirs, ours = _vocabulary(labels.tokenizer_dir), _vocabulary(student)
    ids = np.full(labels.manifest.identity.vocab_size, PAD_ID, dtype=np.int32)
    for token, number in theirs.items():
        if number < len(ids):
            ids[number] = ours.get(token, PAD_ID)
    shared = float((ids != PAD_ID).sum() / max(1, len(theirs)))
    if shared < MIN_SHARED:
        raise IdentityError(
            f"--vocab-map: the student knows {shared:.1%} of the teacher's {len(theirs)} tokens by "
            f"name, and must know {MIN_SHARED:.0%}: its tokenizer is another one, not a variant",
            path=student,
            hint="take a student of the teacher's family (or `trainer slice` one from the teacher)",
        )
    return VocabMap(ids, max(ours.values()) + 1)


def coverage(vocab_map: VocabMap, labels: LabelSet) -> Coverage:
    """What survives of the first row groups, about SAMPLE_LABELS labels of them.

    Raises:
        IdentityError: no row of the sample can be shown to the student.
    """
    columns = ["n_labels", "input_ids", "student_input_ids", *LABEL_COLUMNS]
    rows = kept = ids = kept_ids = seen = 0
    mass = kept_mass = 0.0
    for group in labels.row_groups:
        table = labels.read_row_group(group, columns)
        left = vocab_map.keep(table)
        before = decode(left).labels
        after = vocab_map.map_labels(before)
        rows, kept = rows + len(table), kept + len(left)
        ids += int((before.topk_ids != PAD_ID).sum())
        kept_ids += int((after.topk_ids != PAD_ID).sum())
        mass += float(np.exp(before.topk_logprobs.astype(np.float64)).sum())
        kept_mass += float(np.exp(after.topk_logprobs.astype(np.float64)).sum())
        seen += len(before)
        if seen >= SAMPLE_LABELS:
            break
    if not kept:
        raise IdentityError(
            f"--vocab-map: every one of {rows} rows has a token that the student does not know",
            path=labels.place,
            hint="take a student whose tokenizer has the tokens of the teacher's chat template",
        )
    return Coverage(
        ids=float((vocab_map.ids != PAD_ID).mean()),
        rows=kept / max(1, rows),
        labels=kept_ids / max(1, ids),
        mass=kept_mass / max(mass, 1e-300),
        sample_rows=rows,
    )


def _vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id, added tokens included."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise IdentityError(
            "--vocab-map needs a tokenizer.json on both sides, and there is none here", path=folder
        )
    from tokenizers import Tokenizer

    try:
        return dict(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
    except Exception as error:  # the library raises nothing narrower
        raise IdentityError(f"the tokenizer cannot be read: {error}", path=file) from error
