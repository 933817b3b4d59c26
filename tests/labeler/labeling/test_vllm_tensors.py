"""Labels as tensors from real vLLM: equal to the reference in every column, in every situation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.label_rows import EXTRAS
from labeler.labeling.engines.transformers_engine import TransformersEngine
from labeler.labeling.engines.vllm.vllm_engine import VllmEngine
from labeler.labeling.engines.vllm.vllm_environment import prepare_environment
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labelsets.verify.rescore import rescore_rows, teacher_path
from schemas import Labels, open_label_set, scan, validate_label_set
from schemas.journal import read_entries
from tests.labeler.conftest import Run
from tests.labeler.labeling.test_states_run import logprobs_of_head
from tests.labeler.labeling.test_vllm import small
from tests.tiny_model import TEXT, make_model, make_tokenizer

pytestmark = pytest.mark.vllm


@contextmanager
def vllm(teacher: Path, *, k: int, batched_tokens: int, **settings: Any) -> Iterator[VllmEngine]:
    prepare_environment()
    settings = {"model": teacher, "out": Path("unused"), "max_sequences": 4} | settings
    config = LabelConfig(k=k, **settings)
    opened = open_teacher(teacher, max_length=config.max_length)
    engine = VllmEngine(opened, config, dtype="float32", k=k, batched_tokens=batched_tokens)
    try:
        yield engine
    finally:
        engine.close()


def reference(
    teacher: Path, k: int, outcomes: list[Labeled], states: Sequence[str] = ()
) -> list[Labels]:
    opened = open_teacher(teacher, max_length=max(len(item.input_ids) for item in outcomes))
    engine = TransformersEngine(
        opened, dtype="float32", head_dtype="float32", k=k, sampling=None, states=states
    )
    requests = [
        Request(index=i, sample=0, input_ids=item.input_ids, spans=item.spans, seed=0)
        for i, item in enumerate(outcomes)
    ]
    labeled = [item for item in engine.run(requests) if isinstance(item, Labeled)]
    assert len(labeled) == len(outcomes)
    return [item.labels for item in labeled]


def require_equal(labels: Labels, exact: Labels, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(labels.topk_logprobs, exact.topk_logprobs, atol=tolerance)
    np.testing.assert_allclose(labels.token_logprob, exact.token_logprob, atol=tolerance)
    for name in EXTRAS:
        ours, theirs = getattr(labels, name), getattr(exact, name)
        np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=name)
    assert (labels.states is None) == (exact.states is None)
    if labels.states is not None and exact.states is not None:
        np.testing.assert_allclose(labels.states, exact.states, atol=tolerance, rtol=tolerance)
    near = np.diff(exact.topk_logprobs, axis=1, append=-np.inf) > -tolerance
    near[:, 1:] |= near[:, :-1].copy()
    near[:, -1] = True  # perhaps equal to the first one left out
    assert (labels.topk_ids == exact.topk_ids)[~near].all()


@pytest.mark.parametrize("whole", [False, True], ids=["k=8", "k=V"])
def test_every_column_equals_the_reference(teacher: Path, whole: bool) -> None:
    """Spans only, prompts longer than a step (chunked prefill), a head wider than the tokenizer."""
    vocab_size = open_teacher(teacher, max_length=8).vocab_size
    k = vocab_size if whole else 8
    rng = np.random.default_rng(0)
    spans = (Span(start=1, stop=3, kind="answer"), Span(start=70, stop=101, kind="answer"))
    requests = [
        Request(
            index=i,
            sample=0,
            input_ids=rng.integers(0, vocab_size, length).tolist(),
            spans=spans,
            seed=i,
        )
        for i, length in enumerate([200, 101, 130, 150, 102, 199])
    ]
    with vllm(teacher, k=k, batched_tokens=48, max_length=200) as engine:
        assert engine.facts.settings["capture"] == "tensors"
        outcomes = [item for item in engine.run(requests) if isinstance(item, Labeled)]
    assert len(outcomes) == len(requests)
    for item, exact in zip(outcomes, reference(teacher, k, outcomes), strict=True):
        assert len(item.labels) == 33
        require_equal(item.labels, exact)


SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LOGITS = {
    "softcap": Gemma2Config(
        **SMALL, head_dim=32, final_logit_softcapping=1.5, attn_logit_softcapping=None
    ),
    "scale": CohereConfig(**SMALL, logit_scale=0.25),
}
"""Teachers that change their logits after the product with the head."""


@pytest.mark.parametrize("kind", sorted(LOGITS))
def test_logits_that_a_teacher_changes_after_its_head(tmp_path: Path, kind: str) -> None:
    vocab_size = make_tokenizer(tmp_path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LOGITS[kind]).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    requests = [
        Request(
            index=i,
            sample=0,
            input_ids=rng.integers(0, vocab_size, 40).tolist(),
            spans=(Span(start=1, stop=40, kind="text"),),
            seed=i,
        )
        for i in range(3)
    ]
    with vllm(tmp_path, k=8, batched_tokens=48, max_length=64, states="final,0") as engine:
        assert engine.facts.settings["capture"] == "tensors"
        outcomes = [item for item in engine.run(requests) if isinstance(item, Labeled)]
        head = engine.output_head()
    assert (head.softcap, head.scale) == {"softcap": (1.5, 1.0), "scale": (None, 0.25)}[kind]
    expected = reference(tmp_path, 8, outcomes, ("final", "layer_0"))
    for item, exact in zip(outcomes, expected, strict=True):
        require_equal(item.labels, exact)


@contextmanager
def calls_of_the_head(engine: VllmEngine) -> Iterator[list[int]]:
    """Yield a list that receives the number of calls of each engine step."""
    (model,) = engine.runner.llm.apply_model(lambda model: model)
    project, step = model.compute_logits, engine.runner.step
    steps: list[int] = []

    def count_projection(*args: Any) -> Any:
        steps[-1] += 1
        return project(*args)

    def count_step() -> Any:
        steps.append(0)
        return step()

    model.compute_logits, engine.runner.step = count_projection, count_step  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        model.compute_logits, engine.runner.step = project, step  # type: ignore[method-assign]


def test_calls_of_the_head_do_not_grow_with_the_requests(teacher: Path) -> None:
    """One block for all of them, and vLLM's own call for the next tokens; the labels are equal."""
    vocab_size = open_teacher(teacher, max_length=8).vocab_size
    rng = np.random.default_rng(0)
    requests = [
        Request(
            index=i,
            sample=0,
            input_ids=rng.integers(0, vocab_size, 6 + i % 3).tolist(),
            spans=(Span(start=1 + i % 2, stop=6, kind="text"),),
            seed=i,
        )
        for i in range(60)
    ]
    with vllm(teacher, k=8, batched_tokens=512, max_length=64, max_sequences=64) as engine:
        with calls_of_the_head(engine) as together:
            labeled = [item for item in engine.run(requests) if isinstance(item, Labeled)]
        with calls_of_the_head(engine) as alone:
            for item in labeled:
                (single,) = engine.run([item.request])
                assert isinstance(single, Labeled)
                require_equal(item.labels, single.labels, tolerance=1e-5)
    assert len(labeled) == len(alone) == len(requests)
    assert together == [2]
    assert set(alone) == {2}


def test_the_real_teachers_full_context_under_chunked_prefill(
    real_teacher: Path, tmp_path: Path
) -> None:
    """8,192 tokens in steps of 512, labeled at the start, across step boundaries and at the end.

    The first 3 of the teacher's 30 layers: all see the whole context, and 30 would take minutes.
    """
    teacher = tmp_path / "teacher"
    shutil.copytree(real_teacher, teacher, ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaForCausalLM.from_pretrained(real_teacher, num_hidden_layers=3).save_pretrained(teacher)
    opened = open_teacher(teacher, max_length=8192)
    from pydoc_data.topics import topics

    ids = opened.encode("\n\n".join(topics.values())[:60_000])[:8192]
    assert len(ids) == opened.context == 8192
    spans = tuple(Span(start=start, stop=start + 64, kind="text") for start in (1, 480, 4064, 8128))
    request = Request(index=0, sample=0, input_ids=ids, spans=spans, seed=0)
    with vllm(teacher, k=64, batched_tokens=512, max_length=8192) as engine:
        (outcome,) = engine.run([request])
    assert isinstance(outcome, Labeled)
    (exact,) = reference(teacher, 64, [outcome])
    require_equal(outcome.labels, exact, tolerance=1e-3)


def test_a_vocabulary_of_140_000_under_a_padded_head(run_labeler: Run, tmp_path: Path) -> None:
    """More ids than uint16 or 131,072, a head wider still, weights that favor its padding."""
    path, words = tmp_path / "teacher", 140_000
    vocabulary = {"<eos>": 0} | {f"w{i}": i for i in range(1, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    make_model(path, vocab_size=words + 200, initializer_range=0.3)
    rng = np.random.default_rng(0)
    source = tmp_path / "in.jsonl"
    texts = [" ".join(f"w{i}" for i in rng.integers(1, words, 40)) for _ in range(12)]
    source.write_text("".join(json.dumps({"text": t, "prompt": t[:60]}) + "\n" for t in texts))
    for mode in ("score", "generate"):
        out = tmp_path / mode
        more = ["--mode", mode, "--max-tokens", "8", "--temperature", "1"]
        run_labeler("label", source, *small(path, out, *more))
        labels = open_label_set(out)
        assert list(validate_label_set(labels)) == []
        frame = scan(out).select("topk_ids", "input_ids").collect()
        ids = frame["topk_ids"].explode().explode()
        assert 131_072 < ids.max() < words
        assert frame["input_ids"].explode().max() < words
        assert frame["topk_ids"].explode().list.len().unique().to_list() == [8]
        result = rescore_rows(
            labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
        )
        assert result.good, result.verdict


def assert_student_has_the_generation(frame: pl.DataFrame) -> None:
    """The student's spans hold the teacher's generation, after a prompt of its own."""
    for row in frame.iter_rows(named=True):
        (span,), (student,) = row["spans"], row["student_spans"]
        assert student["start"] != span["start"]
        generated = row["input_ids"][span["start"] : span["stop"]]
        assert row["student_input_ids"][student["start"] : student["stop"]] == generated
        assert student["stop"] == len(row["student_input_ids"])


def test_constrained_generations_are_labeled_without_the_constraint(
    run_labeler: Run, teacher: Path, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [json.dumps({"prompt": text, "student_prompt": "the cat"}) for text in TEXT]
    prompts.write_text("\n".join(lines))
    more = ["--mode", "generate", "--max-tokens", "12", "--structured.regex", "[a-e ]{4,8}"]
    run_labeler("label", prompts, *small(teacher, out, *more))
    frame = scan(out).collect()
    assert frame["generation"].str.contains("^[a-e ]{1,12}$").all()
    assert_student_has_the_generation(frame)
    labels = open_label_set(out)
    assert labels.manifest.identity.sampling is not None
    assert labels.manifest.identity.sampling.structured == {"regex": "[a-e ]{4,8}"}
    # Rescored without the constraint, under which all other ids would have no mass.
    result = rescore_rows(labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0)
    assert result.good, result.verdict


def test_nucleus_labels_keep_the_requested_mass(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ["--top-p-labels", "0.06", "--min-k", "2"]
    run_labeler("label", corpus, *small(teacher, out, *more))
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    one = scan(out).select("topk_ids", "topk_logprobs", "tail_logprob").collect()
    rows = one.explode("topk_ids", "topk_logprobs", "tail_logprob")
    kept = rows["topk_ids"].list.len()
    assert 2 == kept.min() < kept.max() <= 8
    logprobs = rows["topk_logprobs"].cast(pl.List(pl.Float64))
    mass = logprobs.list.eval(pl.element().exp()).list.sum()
    assert ((mass >= 0.0599) | (kept == 8)).all()
    assert rescore_rows(
        labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0
    ).good


def test_tensors_come_through_tensor_parallel_workers(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ["--engine-arg.tensor-parallel-size", "2", "--limit", "8"]
    more += ["--states", "final,1", "--state-kl", "0"]
    run_labeler("label", corpus, *small(teacher, out, *more))
    labels = open_label_set(out)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    weight = model.get_output_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(labels.head.rows(0, len(labels.head.weight)), weight)
    np.testing.assert_allclose(*logprobs_of_head(labels), atol=0.01)  # both in float16
    entries = read_entries(out, labels.manifest.planned_units)
    assert {entry.provenance["settings"]["capture"] for entry in entries} == {"tensors"}
    assert {entry.provenance["settings"]["tensor_parallel_size"] for entry in entries} == {"2"}
    assert labels.manifest.identity.engine_args is None  # where it runs does not change labels
    result = rescore_rows(labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0)
    assert result.good, result.verdict


def test_sampled_answers_to_prompts_longer_than_a_step(
    run_labeler: Run, teacher: Path, tmp_path: Path
) -> None:
    """On a CPU, vLLM cannot sample after a prompt that was split between steps."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    rows = [{"prompt": f"{TEXT[0]} " * (1 + i % 4) + str(i)} for i in range(30)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--mode", "generate", "--max-tokens", "8", "--temperature", "1"]
    flags = [*small(teacher, out)[:6], "--max-length", "120", "--max-sequences", "8"]
    run_labeler("label", prompts, *flags, *more, "--max-batched-tokens", "32")
    labels = open_label_set(out)
    assert labels.rows == len(rows)
    result = rescore_rows(labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0)
    assert result.good, result.verdict
