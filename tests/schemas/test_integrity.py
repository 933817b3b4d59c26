"""Bytes flipped and files cut, all over a label set: each is detected, or provably harmless."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from schemas import LabelSet, LabelSetError, open_label_set, validate_label_set

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1-plain-1"
CHANGES = 120


def read_all(labels: LabelSet) -> list[pa.Table]:
    return [labels.read_row_group(group) for group in labels.row_groups]


def use_everything(path: Path) -> list[pa.Table]:
    """All that a reader, a resumed run and `verify` read; raises where something is wrong."""
    labels = open_label_set(path)
    tables = read_all(labels)
    problems = list(validate_label_set(labels))
    if problems:
        raise LabelSetError(problems[0])
    return tables


@pytest.mark.parametrize(
    "pattern", ["shards/*", "index/*", "manifest.json", "journal/unit-*", "plan.parquet"]
)
def test_altered_files_are_never_believed(pattern: str, tmp_path: Path) -> None:
    rng = random.Random(pattern)
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    truth = use_everything(labels)
    messages, undetected = [], []
    for change in range(CHANGES):
        file = rng.choice(sorted(labels.glob(pattern)))
        original = file.read_bytes()
        altered = bytearray(original)
        place = rng.randrange(len(altered))
        if change % 4 == 0:
            altered = altered[:place]
        else:
            altered[place] ^= 1 << rng.randrange(8)
        file.write_bytes(altered)
        try:
            tables = use_everything(labels)
        except LabelSetError as error:
            messages.append(str(error))
        else:
            # Harmless: every row reads as it did (a blank in a JSON file became another blank).
            same = all(a.equals(b) for a, b in zip(tables, truth, strict=True))
            undetected.append((file.name, place, same))
        file.write_bytes(original)
    assert all(messages)
    assert len(messages) + len(undetected) == CHANGES
    assert all(same for _, _, same in undetected), undetected
    if "json" not in pattern and "journal" not in pattern:
        assert undetected == []


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    shard = next(iter(sorted((labels / "shards").iterdir())))
    shard.unlink()
    with pytest.raises(LabelSetError, match=f"{shard.name}: the shard is missing"):
        read_all(open_label_set(labels))


def test_a_shard_of_another_set_is_refused() -> None:
    """Even where its bytes are hashed anew: the footer names its own teacher."""
    labels = open_label_set(GOLDEN)
    other = labels.manifest.model_copy(update={"identity_digest": "0" * 64})
    with pytest.raises(LabelSetError, match="belongs to another label set"):
        read_all(LabelSet(labels.path, other, labels.row_groups))


def test_an_altered_tokenizer_is_refused(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(GOLDEN, labels)
    file = labels / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("<eos>", "<EOS>"))
    with pytest.raises(LabelSetError, match="tokenizer file is altered"):
        open_label_set(labels)


def test_no_label_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match=r"manifest\.json is missing"):
        open_label_set(tmp_path)
