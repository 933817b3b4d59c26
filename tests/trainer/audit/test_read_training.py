from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas import open_label_set
from tests.trainer.build_label_set import Row, build_label_set
from tests.trainer.conftest import World
from trainer.audit.prefix_probes import prefix_probes
from trainer.audit.read_training import RowSample, read_groups
from trainer.audit.training_text import TrainingText


def drawn(path: Path, size: int, *, prefix: int = 3, continuation: int = 5) -> RowSample:
    sample = RowSample(size, 0, "test")
    for group in read_groups(open_label_set(path)):
        sample.offer(group, group.has_room(prefix, continuation))
    return sample


def test_only_rows_with_room_are_drawn(world: World) -> None:
    def starts(row: Row) -> list[int]:
        return [t for a, b, _ in row.spans for t in range(3, b) if t >= a and t + 5 <= b]

    fitting = {row.id for row in world.rows if starts(row)}
    assert 0 < len(fitting) < len(world.rows)
    sample = drawn(world.labels, 1000)
    assert sample.seen == len(fitting)
    assert {row.key.id for row in sample.rows()} == fitting
    by_id = {row.id: row for row in world.rows}
    for probe in prefix_probes(sample.rows(), prefix=3, continuation=5, seed=1):
        row = by_id[probe.row.key.id]
        assert probe.start in starts(row)
        assert probe.prefix.tolist() == row.input_ids[probe.start - 3 : probe.start]
        assert probe.rest.tolist() == row.input_ids[probe.start :]


def test_a_sample_does_not_depend_on_the_order_of_rows(world: World, tmp_path: Path) -> None:
    other = build_label_set(
        tmp_path / "other", world.teacher, world.rows[::-1], vocab_size=world.vocab_size,
        rows_per_group=7,
    )  # fmt: skip
    names = [[row.key.name for row in drawn(path, 10).rows()] for path in (world.labels, other)]
    assert names[0] == names[1]
    assert len(names[0]) == 10


def test_the_students_own_context_is_read(world: World, tmp_path: Path) -> None:
    row = Row(
        id="a", input_ids=[1, 2, 3, 4, 5, 6], spans=[(4, 6, "answer")],
        student_input_ids=[9, 5, 6], student_spans=[(1, 3, "answer")],
    )  # fmt: skip
    plain = Row(id="b", input_ids=[1, 2, 3], spans=[(1, 3, "text")])
    labels = build_label_set(
        tmp_path / "set", world.teacher, [row, plain], vocab_size=world.vocab_size
    )
    (group,) = read_groups(open_label_set(labels))
    read = group.row(0)
    assert read.ids.tolist() == [9, 5, 6]
    assert read.spans == ((1, 3, "answer"),)
    assert group.row(1).ids.tolist() == [1, 2, 3]
    assert group.has_room(1, 2).tolist() == [True, True]
    assert group.has_room(2, 2).tolist() == [False, False]


def test_rows_of_kept_positions_reach_from_their_first_label_to_their_end(
    world: World, tmp_path: Path
) -> None:
    rows = [
        Row(
            id="a", input_ids=[1, 2, 3, 4, 5, 6], spans=[(2, 3, "answer"), (4, 5, "answer")],
            student_input_ids=[9, 3, 4, 5, 6], student_spans=[(1, 2, "answer"), (3, 4, "answer")],
        ),
        Row(id="b", input_ids=[1, 2, 3, 4], spans=[(1, 2, "text"), (3, 4, "text")]),
    ]  # fmt: skip
    labels = build_label_set(
        tmp_path / "set", world.teacher, rows, vocab_size=world.vocab_size,
        keep_positions="entropy>0",
    )  # fmt: skip
    (group,) = read_groups(open_label_set(labels))
    assert [group.row(n).spans for n in (0, 1)] == [((1, 5, "answer"),), ((1, 4, "text"),)]
    assert group.has_room(1, 4).tolist() == [True, False]


@pytest.mark.parametrize("sentence", ["a@b.de", "müller grüßt 东京 🎉 ok", "  two  spaces "])
def test_tokens_of_characters(world: World, sentence: str) -> None:
    text = TrainingText(open_label_set(world.labels))
    ids = text.encode(f"the cat {sentence} dog")
    whole = text.decode(ids)
    assert whole == f"the cat {sentence} dog"
    for character in range(len(whole)):
        token = text.token_at(ids, character)
        before, after = text.decode(ids[:token]), text.decode(ids[: token + 1])
        assert len(before.rstrip("\ufffd")) <= character < len(after)
    assert text.after(ids[:4], ids[4:]) == whole[len(text.decode(ids[:4])) :]
    assert np.array_equal(text.encode(whole), ids)
