"""Map labels to a student whose tokenizer shares almost all tokens with the teacher's.

Qwen2.5 and Qwen3, for example, differ in a few added tokens. Ids are matched by the token's string.
Labels of tokens that the student lacks become part of the tail; rows with such a token in the input
cannot be shown to the student and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas import Labels, LabelSet, decode
from schemas.codec import LABEL_COLUMNS, PAD_ID
from schemas.errors import IdentityError

MIN_SHARED = 0.95
"""Share of the teacher's ids that a student must know; below, it is a different tokenizer."""
SAMPLE_LABELS = 50_000
"""Labels that `measure_coverage` reads at least, if the set has so many."""


@dataclass(frozen=True)
class VocabMap:
    """A map from the teacher's ids to the student's.

    Attributes:
        ids: int32 [teacher's vocabulary], the student's id of the same token, or PAD_ID.
        student_vocab: number of the student's real ids.
    """

    ids: NDArray[np.int32]
    student_vocab: int

    def known_rows(self, tokens: pa.ListArray) -> NDArray[np.bool_]:
        """Return bool [rows]: True if the student has every token, or the row is null."""
        known = self._map_ids(tokens.flatten().to_numpy()) != PAD_ID
        rows = np.repeat(np.arange(len(tokens)), pc.list_value_length(tokens).fill_null(0))
        unknown = np.bincount(rows[~known], minlength=len(tokens))
        return np.asarray(unknown == 0)

    def keep_known_rows(self, table: pa.Table) -> pa.Table:
        """Return the rows whose input the student knows: its own where the row has one."""
        student = table["student_input_ids"]
        tokens = pc.if_else(pc.is_valid(student), student, table["input_ids"]).combine_chunks()
        known = self.known_rows(tokens)
        return table if known.all() else table.filter(pa.array(known))

    def map_tokens(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the student's ids for tokens of known rows."""
        return self.ids[tokens]

    def map_labels(self, labels: Labels) -> Labels:
        """Return the labels with the student's ids; the mass of ids that it lacks joins the tail.

        Drawn ids that it lacks are left out. Lists stay most likely first, padding last. `entropy`
        and `log_normalizer` stay as they are: they describe the teacher's vocabulary.
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
        known = (ids >= 0) & (ids < len(self.ids))  # a stranger's set may hold any number
        return np.where(known, self.ids[np.where(known, ids, 0)], np.int32(PAD_ID))

    def _map_draws(self, labels: Labels) -> Labels:
        if labels.sample_ids is None or labels.sample_counts is None:
            return labels
        ids = self._map_ids(labels.sample_ids)
        counts = np.where(ids == PAD_ID, np.int32(0), labels.sample_counts)
        return replace(labels, sample_ids=ids, sample_counts=counts)


@dataclass(frozen=True)
class Coverage:
    """The part of a label set that a student can use; shares are from 0 to 1.

    Attributes:
        ids: share of the teacher's ids.
        rows: share of the rows in the sample.
        labels: share of the labeled ids in it.
        mass: share of their probability mass.
        sample_rows: number of rows in the sample.
    """

    ids: float
    rows: float
    labels: float
    mass: float
    sample_rows: int

    def __str__(self) -> str:
        return (
            f"the student has {self.ids:.2%} of the teacher's ids; in a sample of "
            f"{self.sample_rows} rows, {self.rows:.2%} of the rows, {self.labels:.3%} of the "
            f"labeled ids and {self.mass:.3%} of their mass (rows with other tokens in the input "
            "are left out, other labels join the tail)"
        )


def read_vocab_map(labels: LabelSet, student: Path) -> VocabMap:
    """Match the vocabularies of a label set's teacher and of a student by the tokens' strings.

    Raises:
        IdentityError: a `tokenizer.json` is missing, or they share too little.
    """
    teacher_ids, student_ids = _read_vocabulary(labels.tokenizer_dir), _read_vocabulary(student)
    ids = np.full(labels.manifest.identity.vocab_size, PAD_ID, dtype=np.int32)
    for token, number in teacher_ids.items():
        if number < len(ids):
            ids[number] = student_ids.get(token, PAD_ID)
    shared = float((ids != PAD_ID).sum() / max(1, len(teacher_ids)))
    if shared < MIN_SHARED:
        raise IdentityError(
            f"--vocab-map: the student has {shared:.1%} of the teacher's {len(teacher_ids)} tokens "
            f"and must have {MIN_SHARED:.0%}: its tokenizer is a different one, not a variant",
            path=student,
            hint="use a student of the teacher's family (or `trainer slice` one from the teacher)",
        )
    return VocabMap(ids, max(student_ids.values()) + 1)


def measure_coverage(vocab_map: VocabMap, labels: LabelSet) -> Coverage:
    """Measure on the first row groups how much of a label set a student can use.

    Raises:
        IdentityError: the student knows no row of the sample.
    """
    columns = ["n_labels", "input_ids", "student_input_ids", *LABEL_COLUMNS]
    rows = kept = ids = kept_ids = seen = 0
    mass = kept_mass = 0.0
    for group in labels.row_groups:
        table = labels.read_row_group(group, columns)
        left = vocab_map.keep_known_rows(table)
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
            f"--vocab-map: all of {rows} rows have a token that the student does not know",
            path=labels.place,
            hint="use a student whose tokenizer has the tokens of the teacher's chat template",
        )
    return Coverage(
        ids=float((vocab_map.ids != PAD_ID).mean()),
        rows=kept / max(1, rows),
        labels=kept_ids / max(1, ids),
        mass=kept_mass / max(mass, 1e-300),
        sample_rows=rows,
    )


def _read_vocabulary(folder: Path) -> dict[str, int]:
    """Return token -> id, added tokens included."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise IdentityError(
            "--vocab-map needs a tokenizer.json on both sides, and it is missing here", path=folder
        )
    from tokenizers import Tokenizer

    try:
        return dict(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
    except Exception as error:  # the library raises nothing narrower
        raise IdentityError(f"the tokenizer cannot be read: {error}", path=file) from error
