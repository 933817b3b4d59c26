"""Hidden states from real vLLM: equal to the reference engine's in every situation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.transformers_engine import TransformersEngine
from labeler.labeling.engines.vllm.vllm_engine import VllmEngine
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import open_teacher
from schemas import Sampling
from tests.labeler.labeling.test_vllm_tensors import require_equal, vllm
from tests.tiny_model import make_model, make_tokenizer

pytestmark = pytest.mark.vllm

NAMES = ("final", "layer_0", "layer_2")
STATES = "2,final,0"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states")
    make_model(path, vocab_size=make_tokenizer(path) + 20, layers=3)
    return path


@pytest.fixture(scope="module")
def engine(teacher: Path) -> Iterator[VllmEngine]:
    """Steps of 48 tokens: longer prompts are cut, shorter ones share a step."""
    with vllm(teacher, k=8, batched_tokens=48, max_length=200, states=STATES) as engine:
        assert engine.facts.settings["capture"] == "tensors"
        assert engine.facts.settings["enforce_eager"] is True
        yield engine


@pytest.fixture(scope="module")
def reference(teacher: Path) -> Iterator[TransformersEngine]:
    opened = open_teacher(teacher, max_length=200)
    engine = TransformersEngine(
        opened, dtype="float32", head_dtype="float32", k=8, sampling=None, states=NAMES
    )
    yield engine
    engine.close()


def requests(vocab_size: int, *, generate: bool) -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(
            index=i,
            sample=0,
            input_ids=rng.integers(0, vocab_size, length).tolist(),
            spans=()
            if generate
            else (
                Span(start=1, stop=3, kind="answer"),
                Span(start=length - 30, stop=length - i, kind="answer"),
            ),
            seed=i,
        )
        for i, length in enumerate([180, 101, 130, 50, 40, 47, 96, 97])
    ]


@pytest.mark.parametrize("sampling", [None, Sampling(max_tokens=9)], ids=["score", "generate"])
def test_states_equal_the_references(
    engine: VllmEngine,
    reference: TransformersEngine,
    teacher: Path,
    sampling: Sampling | None,
) -> None:
    """Prompts over several steps, prompts that share one, and each of them alone.

    Greedy, since vLLM on a CPU cannot sample after a prompt of several steps.
    """
    vocab_size = open_teacher(teacher, max_length=8).vocab_size
    asked = requests(vocab_size, generate=sampling is not None)
    outcomes = list(engine.runner.run(asked, sampling, engine.reader))
    alone = [next(engine.runner.run([one], sampling, engine.reader)) for one in asked]
    labeled = [item for item in outcomes + alone if isinstance(item, Labeled)]
    assert len(labeled) == 2 * len(asked)
    again = [
        Request(index=i, sample=0, input_ids=item.input_ids, spans=item.spans, seed=0)
        for i, item in enumerate(labeled)
    ]
    for ours, exact in zip(labeled, reference.run(again), strict=True):
        assert isinstance(exact, Labeled)
        require_equal(ours.labels, exact.labels)  # states, too
        assert ours.labels.states is not None
        assert ours.labels.states.shape == (len(ours.labels), 3, 64)


def test_heads_are_equal(engine: VllmEngine, reference: TransformersEngine) -> None:
    ours, exact = engine.output_head(), reference.output_head()
    np.testing.assert_array_equal(ours.weight.numpy(), exact.weight.numpy())
    assert (ours.bias, ours.scale, ours.softcap) == (exact.bias, exact.scale, exact.softcap)
