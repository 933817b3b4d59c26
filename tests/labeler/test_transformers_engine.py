"""The reference engine against a dense float64 computation written out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from labeler.engine import Labeled, Request
from labeler.rendering import Span
from labeler.teacher import open_teacher
from labeler.transformers_engine import TransformersEngine, exact_labels
from schemas import Sampling


def engine_for(path: Path, sampling: Sampling | None = None) -> TransformersEngine:
    teacher = open_teacher(path, max_length=64)
    return TransformersEngine(
        teacher, dtype="float32", head_dtype="float32", k=8, sampling=sampling
    )


def dense_logprobs(path: Path, ids: list[int]) -> np.ndarray:
    """log p of every id of the padded vocabulary, float64 [T, V]; row t is of the token at t."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    logp = torch.log_softmax(logits, dim=-1).numpy()
    return np.concatenate([np.full((1, logp.shape[1]), np.nan), logp[:-1]])


def test_labels_equal_the_dense_distribution(teacher: Path) -> None:
    vocab = open_teacher(teacher, max_length=64).vocab_size
    ids = np.random.default_rng(0).integers(0, vocab, 40).tolist()
    spans = (Span(start=2, stop=5, kind="thinking"), Span(start=9, stop=40, kind="answer"))
    request = Request(index=0, sample=0, input_ids=ids, spans=spans, seed=0)
    (outcome,) = engine_for(teacher).run([request])
    assert isinstance(outcome, Labeled)
    labels, where = outcome.labels, [*range(2, 5), *range(9, 40)]
    logp = dense_logprobs(teacher, ids)[where]
    order = np.argsort(-logp[:, :vocab], axis=1)[:, :8]
    np.testing.assert_array_equal(labels.topk_ids, order)
    expected = np.take_along_axis(logp, order, axis=1)
    np.testing.assert_allclose(labels.topk_logprobs, expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(labels.tail_logprob), 1 - np.exp(expected).sum(1), atol=1e-6)
    actual = logp[np.arange(len(where)), [ids[t] for t in where]]
    np.testing.assert_allclose(labels.token_logprob, actual, atol=1e-5)
    np.testing.assert_allclose(labels.entropy, -(np.exp(logp) * logp).sum(1), atol=1e-5)


def test_generated_labels_are_the_raw_distribution_whatever_the_sampling(teacher: Path) -> None:
    opened = open_teacher(teacher, max_length=64)
    prompt = opened.encode("the cat sat")
    sampling = Sampling(temperature=1.7, top_p=0.8, max_tokens=12)
    request = Request(index=0, sample=0, input_ids=prompt, spans=(), seed=11)
    (outcome,) = engine_for(teacher, sampling).run([request])
    assert isinstance(outcome, Labeled)
    (span,) = outcome.spans
    assert (span.start, span.kind) == (len(prompt), "answer")
    logp = dense_logprobs(teacher, outcome.input_ids)[span.start : span.stop]
    actual = logp[np.arange(len(logp)), outcome.input_ids[span.start :]]
    np.testing.assert_allclose(outcome.labels.token_logprob, actual, atol=1e-5)
    (again,) = engine_for(teacher, sampling).run([request])
    assert isinstance(again, Labeled)
    assert again.input_ids == outcome.input_ids


@pytest.mark.parametrize("k", [3, 19, 20])
def test_tail_is_summed_not_subtracted(k: int) -> None:
    """Mass outside a peaked top-k is right to a relative 1e-4 where 1 - sum would be zero."""
    logits = torch.linspace(0, -400, 20)[None]
    labels = exact_labels(logits, torch.tensor([0]), k=k, vocab_size=20)
    exact = torch.log_softmax(logits.double(), dim=-1)[0].sort(descending=True).values
    if k == 20:
        assert labels.tail_logprob[0] == -np.inf
    else:
        assert labels.tail_logprob[0] == pytest.approx(exact[k:].logsumexp(0).item(), rel=1e-4)
