"""A tiny teacher's label sets with hidden states, and what they must give, by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from schemas import open_label_set
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set, random_rows
from tests.trainer.conftest import World
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.data.teacher_states import open_states
from trainer.student.student import Student

LAYERS = ("final", "layer_0", "layer_1")
STEP = 0.02
CPU = torch.device("cpu")


@dataclass(frozen=True)
class StateWorld:
    """Label sets of one teacher; tests never write to them.

    Attributes:
        half: in float16.
        codes: the same rows in `states/2`.
        other: other rows in `states/2`, with other bases.
        narrow: a student of two layers that is half as wide as the teacher.
    """

    half: Path
    codes: Path
    other: Path
    rows: list[Row]
    narrow: Path


def make_state_world(world: World, root: Path) -> StateWorld:
    """Label 24 rows, and 12 others."""
    vocab, rows = world.vocab_size, random_rows(24, world.vocab_size, seed=7)
    narrow = root / "narrow"
    make_tokenizer(narrow)
    make_model(
        narrow, vocab_size=vocab + 20, layers=2, seed=3, hidden_size=32, num_attention_heads=1
    )
    more = [Row(**(vars(row) | {"id": f"other-{row.id}"})) for row in rows[:12]]

    def build(name: str, rows: list[Row], step: float | None) -> Path:
        path = root / name
        return build_label_set(
            path, world.teacher, rows, vocab_size=vocab, layers=LAYERS, step=step
        )

    return StateWorld(
        half=build("half", rows, None),
        codes=build("codes", rows, STEP),
        other=build("other", more, 2 * STEP),
        rows=rows,
        narrow=narrow,
    )


def first_batch(student: Student, labels: Path, layers: tuple[str, ...] = LAYERS) -> Batch:
    """Return the first batch of a set, with its states decoded."""
    pack = next(iter(LabelDataset(labels, pack_tokens=256, states=layers)))
    batch = collate(pack, attention=student.attention)
    return open_states((open_label_set(labels),), layers, CPU).decoded(batch)


@torch.no_grad()
def run_teacher(teacher: Path, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Return the teacher's logits at the labels, [n, V], and the states of its layers, in float64.

    Each document of a batch is run alone. The states are those that transformers returns: the input
    of each layer, and the final one.
    """
    model = LlamaForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
    starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
    logits, states = [], []
    for start, stop in zip(starts, [*starts[1:], batch.input_ids.shape[1]], strict=True):
        found = model(batch.input_ids[:, start:stop], output_hidden_states=True)
        logits.append(found.logits[0])
        states.append(torch.stack(found.hidden_states)[:, 0])
    return torch.cat(logits)[batch.rows], list(torch.cat(states, 1)[:, batch.rows])
