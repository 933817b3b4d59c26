"""Tails at temperatures are told from those that no distribution has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas import Labels
from schemas.codec import PAD_ID
from schemas.tempered_bounds import impossible_tails
from schemas.version import PLAIN_1

VOCAB, K, ASKED = 500, 8, 3
TEMPERATURES = (0.25, 0.5, 2.0, 4.0, 100.0)


def labels_of(logits: NDArray[np.float64], *, kept: int = K, asked: int = 0) -> Labels:
    """Return what is stored of logits [n, VOCAB], with `asked` ids that are not likely."""
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.argsort(-logp, axis=1, kind="stable")
    ids = np.concatenate([order[:, :kept], order[:, VOCAB - asked :]], axis=1)
    outside = np.ones(logp.shape, bool)
    np.put_along_axis(outside, ids, False, axis=1)

    def tail(temperature: float) -> NDArray[np.float64]:
        scaled = logp / temperature
        whole = np.logaddexp.reduce(scaled, axis=1)
        others = np.logaddexp.reduce(np.where(outside, scaled, -np.inf), axis=1)
        return np.asarray(np.minimum(others - whole, 0.0))

    def half(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return values.astype(np.float16).astype(np.float32)

    return Labels(
        topk_ids=ids.astype(np.int32),
        topk_logprobs=half(np.take_along_axis(logp, ids, 1)),
        tail_logprob=half(tail(1.0)),
        token_logprob=half(logp[:, 0]),
        tempered_tails=half(np.stack([tail(t) for t in TEMPERATURES], axis=1)),
    )


def impossible(labels: Labels, temperatures: tuple[float, ...] = TEMPERATURES) -> list[bool]:
    found = impossible_tails(labels, temperatures, k=K, vocab_size=VOCAB, codec=PLAIN_1)
    return [bool(x) for x in found.any(axis=0)]


def logits(scale: float, seed: int = 0, rows: int = 200) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, VOCAB)) * scale


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize(("kept", "asked"), [(K, 0), (1, 0), (K, ASKED), (VOCAB, 0)])
def test_those_of_a_teacher_are_possible(scale: float, kept: int, asked: int) -> None:
    assert not any(impossible(labels_of(logits(scale), kept=kept, asked=asked)))


def test_the_extremes_are_possible() -> None:
    """The others all alike, and one of them as likely as the last of the top k."""
    even = np.full((3, VOCAB), -9.0)
    even[:, :K] = [[0.0], [3.0], [-9.0]]
    dense = np.full((3, VOCAB), -40.0)
    dense[:, : K + 2] = [[0.0], [-1.0], [2.0]]
    assert not any(impossible(labels_of(np.concatenate([even, dense]))))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("column", range(len(TEMPERATURES)))
@pytest.mark.parametrize("value", [-1e-4, -30.0, -np.inf])
def test_others_are_not(scale: float, column: int, value: float) -> None:
    labels = labels_of(logits(scale, rows=4))
    assert labels.tempered_tails is not None
    tails = labels.tempered_tails.copy()
    tails[2, column] = value
    expected = [n == column for n in range(len(TEMPERATURES))]
    assert impossible(replace(labels, tempered_tails=tails)) == expected


def test_tails_of_other_temperatures_are_not() -> None:
    """As a set would be whose temperatures were exchanged."""
    labels = labels_of(logits(3.0))
    assert impossible(labels, (4.0, 0.5, 2.0, 0.25, 100.0)) == [True, False, False, True, False]


def test_padding_is_no_id() -> None:
    labels = labels_of(logits(2.0))
    ids, logs = labels.topk_ids.copy(), labels.topk_logprobs.copy()
    pad = np.full((len(ids), 2), PAD_ID, np.int32), np.full((len(ids), 2), -np.inf, np.float32)
    padded = replace(
        labels,
        topk_ids=np.concatenate([ids, pad[0]], axis=1),
        topk_logprobs=np.concatenate([logs, pad[1]], axis=1),
    )
    assert not any(impossible(padded))
