from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from torch import nn
from transformers import LlamaForCausalLM

from tests.trainer.build_label_set import teacher_logprobs
from tests.trainer.conftest import World
from trainer.evaluate.bootstrap import FEW_DOCUMENTS
from trainer.evaluate.calibration_error import BINS, bin_numbers, expected_calibration_error
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.student.label_head import convert_head
from trainer.student.top_tokens import find_top_tokens


def reference_ece(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> float:
    """Bin by bin, as in Guo et al. (arXiv 1706.04599): bin m is ((m - 1) / M, m / M]."""
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return float(total)


def ece(confidence: NDArray[Any], correct: NDArray[Any]) -> float:
    bins = bin_numbers(confidence)
    columns = (np.ones(len(bins)), confidence, correct.astype(float))
    sums = np.stack([np.bincount(bins, column, BINS) for column in columns])
    return float(expected_calibration_error(sums))


@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_ece_equals_a_numpy_reference(power: float) -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(5000) ** power
    correct = rng.random(5000) < 0.7 * confidence
    expected = reference_ece(confidence, correct)
    assert expected > 0.02  # it is overconfident
    assert ece(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_ece_of_known_cases() -> None:
    right = np.array([True, True, False, False])
    assert ece(np.full(4, 0.5), right) == 0  # right half of the time, as it says
    assert ece(np.full(4, 0.9), right) == pytest.approx(0.4)
    # In two bins gaps of opposite sign do not cancel.
    assert ece(np.array([0.3, 0.3, 0.7, 0.7]), right) == pytest.approx(0.7)
    assert ece(np.array([1.0, 1.0]), np.array([True, True])) == 0


def test_a_confidence_above_1_by_rounding_stays_in_the_last_bin() -> None:
    assert bin_numbers(np.array([1 + 1e-6, 1.0, 0.0])).tolist() == [14, 14, 0]


@pytest.mark.parametrize(
    ("scale", "softcap", "spread"), [(1.0, None, 1.0), (0.5, 20.0, 2.0), (2.0, None, 0.02)]
)
@pytest.mark.parametrize("k", [1, 5, 16, 500])
def test_top_tokens_are_those_of_the_dense_logits(
    scale: float, softcap: float | None, spread: float, k: int
) -> None:
    torch.manual_seed(0)
    head = convert_head(nn.Linear(16, 230, bias=True))
    hidden = torch.randn(700, 16) * spread * 8
    vocab = 200
    head.weight.data[vocab:] *= 50  # padding that would win if it counted
    logits = nn.functional.linear(hidden, head.weight, head.bias)[:, :vocab].double() * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    dense = logits.log_softmax(1)
    # The labels hold the best id in some rows only, and rows are padded.
    ids = torch.stack([torch.randperm(vocab)[:12] for _ in range(len(hidden))])
    ids[::2, 0] = dense.argmax(1)[::2]
    ids[:, 1:] = ids[:, 1:].masked_fill(ids[:, 1:] == ids[:, :1], -1)
    settings: dict[str, Any] = {"valid_vocab": vocab, "scale": scale, "softcap": softcap}
    with torch.no_grad():
        logp, log_rest, _ = head(hidden, ids, None, **settings)
        decided = logp.max(1).values >= log_rest
        best, best_logp = find_top_tokens(head, hidden, ids, logp, log_rest, k, **settings)
    assert bool((~decided).any())
    assert spread < 0.1 or bool(decided.any())  # both ways were gone
    assert best.shape == (len(hidden), min(k, vocab))
    torch.testing.assert_close(best, dense.topk(min(k, vocab), dim=1).indices)
    torch.testing.assert_close(best_logp.double(), dense.max(1).values, atol=1e-5, rtol=1e-5)


def test_the_reliability_diagram_equals_scikit_learn(world: World, tmp_path: Path) -> None:
    """Of the student by its dense logits, and of the teacher by its labels."""
    results, [(_, model)] = measure_models(
        EvaluateConfig(labels=world.labels, model=(world.student,), out=tmp_path / "eval.json")
    )
    for measured, path in ((model, world.student), (results.teacher, world.teacher)):
        dense = LlamaForCausalLM.from_pretrained(path).double().eval()
        confidence, correct = [], []
        for row in world.rows:
            logp = teacher_logprobs(dense, row.input_ids, world.vocab_size)
            for at in (t for start, stop, _ in row.spans for t in range(start, stop)):
                confidence.append(float(logp[at - 1].max().exp()))
                correct.append(int(logp[at - 1].argmax()) == row.input_ids[at])
        accuracies, confidences = calibration_curve(correct, confidence, n_bins=BINS)
        used = [bin for bin in measured.calibration if bin.labels]
        assert [bin.accuracy for bin in used] == pytest.approx(accuracies.tolist())
        assert [bin.confidence for bin in used] == pytest.approx(confidences.tolist(), rel=2e-3)
        assert sum(bin.labels for bin in used) == len(confidence)
        empty = [bin for bin in measured.calibration if not bin.labels]
        assert all(bin.accuracy is bin.confidence is bin.interval is None for bin in empty)
        assert len(used) + len(empty) == BINS
        wide = [bin for bin in used if bin.documents >= FEW_DOCUMENTS]
        assert wide
        for bin in used:
            assert (bin.interval is not None) == (bin in wide)
        for bin in wide:
            assert bin.interval is not None
            assert bin.accuracy is not None
            assert bin.interval[0] <= bin.accuracy <= bin.interval[1]
