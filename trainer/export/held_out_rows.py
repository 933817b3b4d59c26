"""Rows of a held-out set: the student's figures on them, and the same figures from elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from schemas import LabelSet
from trainer.console import ProgressBar
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset, Pack
from trainer.export.export_record import ExportQuality
from trainer.student.context_check import check_context, longest_row
from trainer.student.student import load_student

PACK_TOKENS = 512
"""Fewest tokens of a pack: small packs end near the labels that were asked for."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A row as the student sees it.

    Attributes:
        tokens: its ids.
        positions: those of the labeled tokens, all above 0.
        teacher_top: the teacher's most likely id at each of them.
    """

    tokens: list[int]
    positions: list[int]
    teacher_top: list[int]


class Answers(NamedTuple):
    """What a model says at the labels of a row, in their order.

    Attributes:
        logprobs: of the actual tokens, in nats.
        top: the most likely ids.
    """

    logprobs: list[float]
    top: list[int]


def quality(rows: list[HeldOutRow], answers: list[Answers]) -> ExportQuality:
    """Return the figures of a model from what it says at each label."""
    logprobs = np.concatenate([answer.logprobs for answer in answers])
    top = np.concatenate([answer.top for answer in answers])
    teacher = np.concatenate([row.teacher_top for row in rows])
    return _means(-logprobs.sum(), (top == teacher).sum(), len(logprobs))


def measure_student(
    model: Path, labels: LabelSet, *, sample_labels: int, map_vocab: bool
) -> tuple[ExportQuality, list[HeldOutRow], list[str]]:
    """Run the unexported student, in float32, on whole packs until they have enough labels.

    Returns:
        Its figures, the rows, and notes on how it was run.

    Raises:
        SoftshardsError: the student cannot be loaded, or does not fit the label set.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_student(model, labels, map_vocab=map_vocab).eval()
    warning = check_context(student, longest_row(labels, student))
    notes = [*student.notes, *([f"warning: {warning}"] if warning else [])]
    student.to(device)
    packs = LabelDataset(
        labels,
        pack_tokens=max(PACK_TOKENS, labels.manifest.identity.max_length),
        padded=student.attention == "padded",
        window=1,
        vocab_map=student.vocab_map,
    )
    rows: list[HeldOutRow] = []
    ce = agree = count = 0.0
    with ProgressBar("student", min(sample_labels, labels.labels)) as progress:
        for pack in packs:
            batch = collate(pack, attention=student.attention).to(device)
            with torch.no_grad():
                output, top = student(batch, top_k=1)
            ce -= float(output.target_logp.double().sum())
            agree += float((top.ids[:, 0] == batch.topk_ids[:, 0]).sum())
            count += pack.n_labels
            rows += _rows(pack)
            progress.advance(pack.n_labels)
            if count >= sample_labels:
                break
    return _means(ce, agree, int(count)), rows, notes


def _rows(pack: Pack) -> list[HeldOutRow]:
    window = pack.window
    rows = []
    for row in pack.rows:
        tokens = slice(window.token_offsets[row], window.token_offsets[row + 1])
        labels = slice(window.label_offsets[row], window.label_offsets[row + 1])
        rows.append(
            HeldOutRow(
                tokens=window.tokens[tokens].tolist(),
                positions=window.positions[labels].tolist(),
                teacher_top=window.labels.topk_ids[labels, 0].tolist(),
            )
        )
    return rows


def _means(ce: float, agree: float, count: int) -> ExportQuality:
    return ExportQuality(
        labels=count,
        ce=ce / count,
        ppl=math.exp(min(ce / count, 700.0)),
        agreement=agree / count,
    )


class Text(NamedTuple):
    """A text and its ids by the student's own tokenizer."""

    text: str
    ids: list[int]


def row_texts(model: Path, rows: list[HeldOutRow]) -> list[Text]:
    """Return the rows as text with the student's ids for it; empty without a tokenizer.json."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return []
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [tokenizer.decode(row.tokens, skip_special_tokens=False) for row in rows]
    return [Text(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
