"""Sampled labels: the draws themselves, and real vLLM runs that store them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from labeler.labeling.engines.label_rows import draw, uniform
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import LabelSet, SoftshardsError, decode, open_label_set, validate_label_set
from tests.labeler.conftest import Run, Settings
from tests.labeler.labeling.test_vllm import small
from tests.tiny_model import TEXT

DRAWS = 50


def counts_of(drawn: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Count the draws of each id, [n, V]."""
    counts = torch.zeros(len(drawn), vocab_size, dtype=torch.int64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn))


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 10_000), st.floats(0.1, 30))
def test_counts_are_within_one_of_the_expectation(
    vocab: int, draws: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = (torch.randn(4, vocab, generator=generator) * scale).softmax(1)
    p[0, vocab // 2 :] = 0  # ids without any mass, and a sum that is not one
    if p[0].sum() == 0:
        p[0, 0] = 0.5
    u = torch.tensor([0.0, 0.5, 1 - 2**-24, 2**-24])
    drawn = draw(p, u, draws)
    assert (drawn[:, 1:] >= drawn[:, :-1]).all()
    expected = p / p.sum(1, keepdim=True) * draws
    counts = counts_of(drawn, vocab)
    assert (counts - expected).abs().max() < 1 + 1e-4 * draws
    assert (counts[p == 0] == 0).all()


def test_counts_average_to_the_distribution() -> None:
    p = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).softmax(1)
    u = (torch.arange(1000) + 0.5) / 1000
    counts = counts_of(draw(p.expand(1000, -1), u, 7), 40).double().mean(0)
    torch.testing.assert_close(counts / 7, p[0].double(), atol=2e-4, rtol=0)


def test_uniform_is_uniform_and_independent_of_its_neighbors() -> None:
    normalizers = torch.linspace(5, 30, 20_000)
    tokens = torch.arange(20_000) % 997
    u = uniform(normalizers, tokens)
    assert 0 <= u.min() <= u.max() < 1
    # Kolmogorov-Smirnov: one in a thousand uniform samples exceeds 1.95 / sqrt(n).
    steps = (torch.arange(20_000) + 0.5) / 20_000
    assert (u.sort().values - steps).abs().max() < 1.95 / 20_000**0.5
    assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 0.03
    assert torch.equal(uniform(normalizers[7:9], tokens[7:9]), u[7:9])
    assert not torch.equal(uniform(normalizers, tokens + 1), u)


@torch.inference_mode()
def require_drawn_from(labels: LabelSet, teacher: Path) -> int:
    """Compare each count with the id's probability in transformers; return the number of ids."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    vocab = labels.manifest.identity.vocab_size
    seen = 0
    for group in labels.row_groups:
        rows = labels.read_row_group(group)
        decoded = decode(rows)
        ids, counts = decoded.labels.sample_ids, decoded.labels.sample_counts
        assert ids is not None
        assert counts is not None
        for row, tokens in enumerate(rows["input_ids"].to_pylist()):
            logits = model(torch.tensor([tokens])).logits[0, :, :vocab]
            spans = rows["spans"][row].as_py()
            at = [t - 1 for span in spans for t in range(span["start"], span["stop"])]
            p = logits[at].double().softmax(1).numpy()
            mine = slice(decoded.offsets[row], decoded.offsets[row + 1])
            dense = np.zeros((len(at), vocab + 1))  # padding goes to the last column
            np.put_along_axis(dense, np.where(ids[mine] < 0, vocab, ids[mine]), counts[mine], 1)
            assert (dense[:, :vocab].sum(1) == DRAWS).all()
            assert np.abs(dense[:, :vocab] - DRAWS * p).max() < 1.01
            seen += int((counts[mine] > 0).sum())
    return seen


@pytest.mark.slow
def test_the_reference_engine_draws(corpus: Path, settings: Settings) -> None:
    config = settings(draws=DRAWS)
    label([str(corpus)], config)
    labels = open_label_set(config.out)
    assert labels.manifest.identity.draws == DRAWS
    assert list(validate_label_set(labels)) == []
    assert require_drawn_from(labels, config.model) > labels.labels


@pytest.mark.vllm
@pytest.mark.parametrize("mode", ["score", "generate"])
def test_vllm_draws(
    corpus: Path, teacher: Path, tmp_path: Path, run_labeler: Run, mode: str
) -> None:
    """Draws of real vLLM under a padded head; a second run draws the same."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": f"p{i}", "prompt": TEXT[i][:40]}) for i in range(4)]
    prompts.write_text("\n".join(lines))
    inputs = {"score": corpus, "generate": prompts}
    flags = ["--draws", DRAWS, "--mode", mode, "--codec", "compact"]
    if mode == "generate":
        flags += ["--max-tokens", 8, "--temperature", 1]
    for out in ("a", "b"):
        run_labeler("label", inputs[mode], *small(teacher, tmp_path / out, *flags))
    labels, again = (open_label_set(tmp_path / out) for out in ("a", "b"))
    assert list(validate_label_set(labels)) == []
    assert require_drawn_from(labels, teacher) > labels.labels
    assert labels.content_digest == again.content_digest


def test_draws_are_refused_without_the_full_distribution() -> None:
    for flags in ({"engine": "served", "server_url": "http://127.0.0.1:1"}, {"capture": "public"}):
        with pytest.raises(SoftshardsError, match="--draws needs the teacher's full distribution"):
            LabelConfig(model=Path("teacher"), out=Path("labels"), draws=50, **flags)
    with pytest.raises(SoftshardsError, match="--draws is -1"):
        LabelConfig(model=Path("teacher"), out=Path("labels"), draws=-1)
