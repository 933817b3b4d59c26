"""Acceptance as a draft model against the accept/reject rule, and overlap of top-k lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.trainer.build_label_set import build_label_set, random_rows, teacher_logprobs
from tests.trainer.conftest import World
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.evaluate.measure import top_overlap

DRAWS = 400


def test_acceptance_equals_a_simulation_of_the_rule(world: World, tmp_path: Path) -> None:
    """Draw x from the student q, accept it with probability min(1, p(x) / q(x)).

    With all ids stored the two bounds are the acceptance; with few they enclose it.
    """
    rows = random_rows(8, world.vocab_size, seed=9)
    models = [
        LlamaForCausalLM.from_pretrained(path).double().eval()
        for path in (world.teacher, world.student)
    ]
    random = np.random.default_rng(0)
    accepted: list[float] = []
    for row in rows:
        of_models = (teacher_logprobs(m, row.input_ids, world.vocab_size) for m in models)
        teacher, student = (logp.exp().numpy() for logp in of_models)
        at = [t - 1 for start, stop, _ in row.spans for t in range(start, stop)]
        for p, q in zip(teacher[at], student[at]):
            drafted = random.choice(len(q), DRAWS, p=q / q.sum())
            accepts = random.random(DRAWS) < np.minimum(1, p[drafted] / q[drafted])
            accepted.append(float(accepts.mean()))
    simulated = np.mean(accepted)
    found = {}
    for k in (8, world.vocab_size):
        labels = build_label_set(
            tmp_path / f"k{k}", world.teacher, rows, vocab_size=world.vocab_size, k=k
        )
        out = tmp_path / f"{k}.json"
        _, [(_, model)] = measure_models(
            EvaluateConfig(labels=labels, model=(world.student,), out=out)
        )
        found[k] = model.all
    # The standard error of the simulation: at most 0.5 / sqrt(draws of all labels).
    error = 4 * 0.5 / np.sqrt(DRAWS * len(accepted))
    exact = found[world.vocab_size]
    assert exact.acceptance == pytest.approx(simulated, abs=error)
    assert exact.acceptance_upper == pytest.approx(exact.acceptance, abs=1e-6)
    few = found[8]
    assert few.acceptance is not None
    assert few.acceptance_upper is not None
    assert few.acceptance < exact.acceptance < few.acceptance_upper


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_overlap_equals_sets(k: int) -> None:
    random = np.random.default_rng(k)
    teacher = np.stack([random.permutation(12)[:6] for _ in range(200)])
    lengths = random.integers(0, 7, 200)  # a nucleus cut leaves lists of any length
    teacher[np.arange(6) >= lengths[:, None]] = -1
    student = np.stack([random.permutation(12)[:k] for _ in range(200)])
    expected = []
    for ids, mine in zip(teacher.tolist(), student.tolist()):
        depth = min(k, len([i for i in ids if i >= 0]))
        expected.append(len(set(ids[:depth]) & set(mine[:depth])) / depth if depth else 0.0)
    found = top_overlap(torch.from_numpy(teacher), torch.from_numpy(student))
    np.testing.assert_allclose(found.numpy(), expected)
