from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

from tests.trainer.build_label_set import teacher_logprobs
from tests.trainer.conftest import World
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.evaluate.worst_sequences import SHOWN_POSITIONS, _Texts, _worst_window


@pytest.mark.slow
def test_the_worst_sequences_are_those_of_a_dense_reference(world: World, tmp_path: Path) -> None:
    config = EvaluateConfig(
        labels=world.labels, model=(world.student,), out=tmp_path / "e.json", worst=2
    )
    results, _ = measure_models(config)
    found = results.models[0].worst
    teacher, student = (
        LlamaForCausalLM.from_pretrained(path).double().eval()
        for path in (world.teacher, world.student)
    )
    means = {}
    for row in world.rows:
        t, s = (teacher_logprobs(m, row.input_ids, world.vocab_size) for m in (teacher, student))
        values = []
        for start, stop, _ in row.spans:
            for at in range(start, stop):
                p, q = t[at - 1], s[at - 1]
                ids = p.topk(8).indices
                rest = torch.ones_like(p, dtype=torch.bool)
                rest[ids] = False
                tail = p[rest].logsumexp(0)
                kl = (p[ids].exp() * (p[ids] - q[ids])).sum()
                values.append(float(kl + tail.exp() * (tail - q[rest].logsumexp(0))))
        means[row.id] = (len(values) >= 8, np.mean(values), max(values))
    ranked = sorted(means, key=lambda name: means[name][:2], reverse=True)
    assert [sequence.row.split(" (")[0] for sequence in found] == ranked[:2]
    for name, sequence in zip(ranked, found):
        assert sequence.kl == pytest.approx(means[name][1], abs=1e-3)
        assert sequence.positions[0].kl == pytest.approx(means[name][2], abs=1e-2)
        assert len(sequence.positions) <= SHOWN_POSITIONS
        worst = sequence.positions[0]
        assert sequence.tokens[worst.at].kl == worst.kl
        for choices in (worst.teacher, worst.student):
            assert [c.p for c in choices] == sorted((c.p for c in choices), reverse=True)
    row = next(row for row in world.rows if row.id == ranked[0])
    at = found[0].start + found[0].positions[0].at
    p, q = (
        teacher_logprobs(m, row.input_ids, world.vocab_size)[at - 1] for m in (teacher, student)
    )
    assert found[0].positions[0].teacher[0].p == pytest.approx(float(p.max().exp()), abs=1e-3)
    assert found[0].positions[0].student[0].p == pytest.approx(float(q.max().exp()), abs=1e-3)
    actual = row.input_ids[at]
    assert found[0].positions[0].teacher_actual == pytest.approx(float(p[actual].exp()), abs=1e-3)
    assert found[0].positions[0].student_actual == pytest.approx(float(q[actual].exp()), abs=1e-3)


def test_nothing_is_kept_if_not_asked_for(world: World, tmp_path: Path) -> None:
    config = EvaluateConfig(
        labels=world.labels, model=(world.student,), out=tmp_path / "e.json", worst=0
    )
    assert measure_models(config)[0].models[0].worst == []


def test_the_passage_has_the_highest_sum() -> None:
    kl = np.full(300, np.nan)
    kl[10], kl[200:220] = 5.0, 1.0
    start = _worst_window(kl)
    assert start <= 200
    assert start + 96 >= 220
    assert _worst_window(kl[:50]) == 0
    kl[10] = np.inf
    assert _worst_window(kl) <= 10


def test_text_of_tokens_joins_cut_characters(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = _Texts(tmp_path / "tokenizer.json")
    ids = tokenizer.encode("aß b").ids
    assert texts.of_sequence(ids) == ["a", "", "ß", " ", "b"]
    assert texts.after(ids[0], ids[3]) == " "
    assert _Texts(tmp_path / "missing.json").of_sequence([7, 8]) == ["#7 ", "#8 "]
