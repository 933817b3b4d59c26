"""The reference engine against a dense float64 computation written out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GraniteConfig,
    MixtralConfig,
)

from labeler.labeling.engines import transformers_engine
from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.transformers_engine import TransformersEngine, exact_labels
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import open_teacher
from schemas import Sampling, SoftshardsError
from tests.tiny_model import make_model, make_tokenizer


def engine_for(
    path: Path, sampling: Sampling | None = None, *, dtype: str = "float32"
) -> TransformersEngine:
    teacher = open_teacher(path, max_length=64)
    return TransformersEngine(teacher, dtype=dtype, head_dtype="float32", k=8, sampling=sampling)


def dense_logprobs(path: Path, ids: list[int]) -> np.ndarray:
    """Return log p of every id of the padded vocabulary, float64 [T, V]; row t predicts token t."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="eager"
    )
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


def test_generated_labels_are_the_raw_distribution_under_any_sampling(teacher: Path) -> None:
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


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
AFTER_THE_HEAD = {
    "softcap": Gemma2Config(**SMALL, head_dim=32, final_logit_softcapping=1.5, sliding_window=64),
    "scaling": GraniteConfig(**SMALL, logits_scaling=4.0, tie_word_embeddings=True),
    "experts": MixtralConfig(**SMALL, num_local_experts=4),
    "another name of the body": GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=512),
}


@pytest.mark.parametrize("kind", sorted(AFTER_THE_HEAD))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_in_chunks_give_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    """With anything the model does after its head, and with a head wider than its body."""
    config = AFTER_THE_HEAD[kind]
    config.vocab_size = make_tokenizer(tmp_path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 300).tolist()
    spans = (Span(start=2, stop=5, kind="thinking"), Span(start=9, stop=300, kind="answer"))
    request = Request(index=0, sample=0, input_ids=ids, spans=spans, seed=0)
    engine = engine_for(tmp_path, dtype=dtype)
    (whole,) = engine.run([request])
    monkeypatch.setattr(transformers_engine, "REFERENCE_CHUNK", 7)
    (chunked,) = engine.run([request])
    assert isinstance(whole, Labeled)
    assert isinstance(chunked, Labeled)
    assert len(chunked.labels) == 294
    np.testing.assert_array_equal(chunked.labels.topk_ids, whole.labels.topk_ids)
    for name in ("topk_logprobs", "tail_logprob", "token_logprob", "entropy", "log_normalizer"):
        there, expected = getattr(chunked.labels, name), getattr(whole.labels, name)
        np.testing.assert_allclose(there, expected, atol=1e-5, err_msg=name)
    # And the model's own distribution in float64, where torch can run it.
    if dtype == "float32" and kind != "experts":
        logp = dense_logprobs(tmp_path, ids)[[*range(2, 5), *range(9, 300)]]
        order = np.argsort(-logp, axis=1)[:, :8]
        np.testing.assert_allclose(
            chunked.labels.topk_logprobs, np.take_along_axis(logp, order, axis=1), atol=1e-4
        )


def test_a_long_sequence_never_has_all_its_logits_in_memory(teacher: Path) -> None:
    """The widest tensor that the head makes is a chunk's, and the body runs once."""
    engine = engine_for(teacher)
    rows: list[int] = []
    bodies: list[int] = []
    model = engine._model
    model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: rows.append(logits.shape[1])
    )
    model.base_model.layers[0].register_forward_hook(lambda *_: bodies.append(1))
    length = 3 * transformers_engine.REFERENCE_CHUNK
    ids = np.random.default_rng(0).integers(0, 200, length).tolist()
    span = Span(start=1, stop=length, kind="text")
    list(engine.run([Request(index=0, sample=0, input_ids=ids, spans=(span,), seed=0)]))
    assert max(rows) == transformers_engine.REFERENCE_CHUNK
    assert sum(rows) == length - 1
    assert len(bodies) == 1


def test_min_p_leaves_only_likely_tokens(teacher: Path) -> None:
    """min_p = 1 keeps only the most likely token: greedy at any temperature."""
    prompt = open_teacher(teacher, max_length=64).encode("the cat sat")
    request = Request(index=0, sample=0, input_ids=prompt, spans=(), seed=3)
    outputs = []
    for sampling in (
        Sampling(max_tokens=12),
        Sampling(temperature=3.0, min_p=1.0, max_tokens=12),
        Sampling(temperature=3.0, max_tokens=12),
    ):
        (outcome,) = engine_for(teacher, sampling).run([request])
        assert isinstance(outcome, Labeled)
        outputs.append(outcome.input_ids)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_the_checkpoints_own_sampling_settings_are_ignored(tmp_path: Path) -> None:
    """Greedy picks the most likely token even if generation_config.json sets penalties."""
    vocab_size = make_tokenizer(tmp_path)
    make_model(tmp_path, vocab_size=vocab_size)
    GenerationConfig(repetition_penalty=50.0, eos_token_id=0).save_pretrained(tmp_path)
    prompt = open_teacher(tmp_path, max_length=64).encode("the cat sat on the mat")
    request = Request(index=0, sample=0, input_ids=prompt, spans=(), seed=3)
    (outcome,) = engine_for(tmp_path, Sampling(max_tokens=24)).run([request])
    assert isinstance(outcome, Labeled)
    np.testing.assert_array_equal(
        outcome.labels.topk_ids[:, 0], outcome.input_ids[outcome.spans[0].start :]
    )


def test_constrained_generation_is_refused(teacher: Path) -> None:
    with pytest.raises(SoftshardsError, match="cannot constrain"):
        engine_for(teacher, Sampling(structured={"regex": "[0-9]+"}))
