"""Students whose tokenizer shares almost all tokens with the teacher's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from schemas import IdentityError, Labels, open_label_set
from schemas.codec import PAD_ID
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.data.vocab_map import VocabMap, measure_coverage, read_vocab_map
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import evaluate
from trainer.train.loop import train

LOST = 3
"""The teacher's ids that the cousin lacks: rare enough that some rows have none of them."""


@pytest.fixture(scope="module")
def cousin(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose ids are the teacher's in reverse order, without LOST, plus one."""
    path = tmp_path_factory.mktemp("cousin") / "student"
    make_tokenizer(path)
    content = json.loads((path / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    tokens = sorted(vocab, key=lambda token: vocab[token])
    kept = [token for token in reversed(tokens) if vocab[token] not in lost(world)]
    content["model"]["vocab"] = {token: number for number, token in enumerate([*kept, "<new>"])}
    merges = content["model"]["merges"]
    content["model"]["merges"] = [
        merge for merge in merges if {*merge, "".join(merge)} <= set(content["model"]["vocab"])
    ]
    for token in content["added_tokens"]:
        token["id"] = content["model"]["vocab"][token["content"]]
    (path / "tokenizer.json").write_text(json.dumps(content))
    assert len(PreTrainedTokenizerFast.from_pretrained(path)) == len(kept) + 1
    make_model(path, vocab_size=len(kept) + 20, layers=1, seed=2)
    return path


def lost(world: World) -> set[int]:
    """Merged tokens: no other token depends on the last ones learned."""
    return set(range(world.vocab_size - LOST, world.vocab_size))


def test_mass_of_unknown_ids_joins_the_tail() -> None:
    vocab_map = VocabMap(np.array([4, PAD_ID, 0, 2], dtype=np.int32), 5)
    labels = Labels(
        topk_ids=np.array([[1, 3, 0], [2, 0, PAD_ID]], dtype=np.int32),
        topk_logprobs=np.log(np.array([[0.5, 0.2, 0.1], [0.6, 0.3, 1e-300]])).astype("f4"),
        tail_logprob=np.log(np.array([0.2, 0.1])).astype("f4"),
        token_logprob=np.zeros(2, "f4"),
    )
    labels.topk_logprobs[1, 2] = -np.inf
    mapped = vocab_map.map_labels(labels)
    assert mapped.topk_ids.tolist() == [[2, 4, PAD_ID], [0, 4, PAD_ID]]
    np.testing.assert_allclose(
        np.exp(mapped.topk_logprobs), [[0.2, 0.1, 0], [0.6, 0.3, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(np.exp(mapped.tail_logprob), [0.7, 0.1], rtol=1e-6)
    assert mapped.topk_logprobs.dtype == mapped.tail_logprob.dtype == np.float32


def test_rows_and_labels_are_the_same_tokens_by_name(world: World, cousin: Path) -> None:
    labels = open_label_set(world.labels)
    vocab_map = read_vocab_map(labels, cousin)
    rows = {f"{row.id} (chunk 0, sample 0)": row for row in world.rows}
    known = {key for key, row in rows.items() if not lost(world) & set(row.input_ids)}
    assert 0 < len(known) < len(rows)
    packs = list(LabelDataset(labels, pack_tokens=128, window=4, vocab_map=vocab_map))
    assert {key for pack in packs for key in pack.keys} == known
    count = LabelDataset(labels, pack_tokens=128, window=4, vocab_map=vocab_map).count()
    assert (count.packs, count.tokens) == (len(packs), sum(pack.n_tokens for pack in packs))
    theirs, ours = (
        PreTrainedTokenizerFast.from_pretrained(path) for path in (world.teacher, cousin)
    )
    for pack in packs:
        batch = collate(pack)
        expected = [t for key in pack.keys for t in rows[key].input_ids]
        assert ours.convert_ids_to_tokens(batch.input_ids[0].tolist()) == (
            theirs.convert_ids_to_tokens(expected)
        )
        total = batch.topk_logprobs.exp().sum(1) + batch.tail_logprob.exp()
        np.testing.assert_allclose(total.numpy(), 1, atol=1e-5)
    found = measure_coverage(vocab_map, labels)
    assert found.ids == pytest.approx(1 - LOST / world.vocab_size)
    assert found.rows == pytest.approx(len(known) / len(rows))
    assert 0.9 < found.labels < 1
    assert 0.9 < found.mass < 1


def test_train_and_evaluate_a_cousin(
    world: World, cousin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(IdentityError, match="--vocab-map"):
        train(config(world, tmp_path / "x", student=cousin))
    settings: dict[str, Any] = {"vocab_map": True, "epochs": 8, "lr": 1e-2}
    settings["loss"] = ("forward_kl=1",)
    train(config(world, tmp_path / "run", student=cousin, **settings, eval_labels=world.labels))
    said = capsys.readouterr().err
    assert f"{1 - LOST / world.vocab_size:.2%} of the teacher's ids" in said
    lines = log(tmp_path / "run")
    assert lines[-1]["kl"] < lines[0]["kl"]
    evals = [json.loads(x) for x in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    asked = EvaluateConfig(
        labels=world.labels,
        model=(tmp_path / "run" / "final",),
        out=tmp_path / "eval.json",
        vocab_map=True,
    )
    assert evaluate(asked) == 0
    found = json.loads((tmp_path / "eval.json").read_text())["models"][0]
    assert found["all"]["kl"] == pytest.approx(evals[-1]["kl"], rel=1e-5)


def test_a_different_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world.student, other)
    make_tokenizer(other, vocab_size=290, text=["zebras quiz foxy jumps over lazy dogs"])
    with pytest.raises(IdentityError, match=r"has 8\d\.\d% of the teacher's 300 tokens") as e:
        train(config(world, tmp_path / "run", student=other, vocab_map=True))
    assert "must have 95%" in str(e.value)
