"""What the self-test of tensor labels lets pass, and what not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from labeler.labeling.engines.capture import labels_from_tensors
from labeler.labeling.engines.label_rows import gather_rows
from labeler.labeling.engines.vllm.vllm_self_test import difference
from schemas import Labels

WIDTH, K = 3_000, 16


def make(seed: int = 0) -> Labels:
    logits = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed)) * 4
    tokens = torch.arange(8)
    ids, values = gather_rows(logits, tokens, k=K, vocab_size=WIDTH)
    return labels_from_tensors(
        ids.numpy(), values.numpy(), tokens.numpy().astype(np.int32), k=K, vocab_size=WIDTH
    )


@pytest.mark.parametrize("error", [0.0, 2e-5, -1e-4])
def test_the_rounding_of_a_sum_over_the_vocabulary_passes(error: float) -> None:
    labels = make()
    theirs = replace(
        labels,
        topk_logprobs=labels.topk_logprobs + np.float32(error),
        token_logprob=labels.token_logprob + np.float32(error),
    )
    assert difference([theirs], [labels]) is None


def test_what_is_more_than_rounding_does_not() -> None:
    labels = make()
    warmer = replace(labels, topk_logprobs=labels.topk_logprobs / np.float32(1.001))
    assert "top-k logprobs" in str(difference([warmer], [labels]))
    shifted = replace(labels, token_logprob=np.roll(labels.token_logprob, 1))
    assert "actual tokens" in str(difference([shifted], [labels]))
    swapped = replace(labels, topk_ids=labels.topk_ids[:, ::-1])
    assert "top-k ids" in str(difference([swapped], [labels]))
    tail = replace(labels, tail_logprob=labels.tail_logprob + np.float32(0.01))
    assert "tail" in str(difference([tail], [labels]))
