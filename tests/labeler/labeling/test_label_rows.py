"""Label rows of logits, as vLLM's workers compute them, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labeler.labeling.engines import label_rows
from labeler.labeling.engines.capture import labels_from_tensors
from labeler.labeling.engines.label_rows import EXTRAS, gather_rows, largest
from schemas.draws import misfits

ROWS = 24


def reference(logits: torch.Tensor, tokens: torch.Tensor, k: int, vocab_size: int) -> torch.Tensor:
    """Return the values of `gather_rows` in float64."""
    x = logits.double()
    normalizer = x.logsumexp(1, keepdim=True)
    logprobs = x - normalizer
    top, ids = logprobs[:, :vocab_size].topk(k, 1)
    entropy = torch.special.entr(logprobs.exp()).sum(1, keepdim=True)
    tail = logprobs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logprobs.gather(1, tokens), top, tail, entropy, normalizer], 1)


def make(width: int, scale: float, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [n, width] with hard rows among them, and tokens [n, 1]."""
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(ROWS, width, generator=generator) * scale
    tokens = torch.randint(0, vocab_size, (ROWS, 1), generator=generator)
    logits[1] = 0  # all equal
    logits[2] += 1000  # large, and close together
    logits[3, 5] += 60  # a tail of 1e-26
    logits[4, 5] += 1e4  # one below float32's smallest number
    logits[5, vocab_size // 2 :] = -torch.inf  # ids that cannot occur
    logits[6, 0], logits[6, 1:] = 0, -torch.inf  # one that must
    logits[7] = logits[7].round()  # many ties
    logits[8, -1] += 300  # the padding's, where there is padding
    logits[9] *= 30
    tokens[5:7] = 0
    return logits, tokens


@pytest.mark.parametrize(
    ("width", "vocab_size", "k"),
    [
        (49_152, 49_152, 64),
        (50_257, 50_257, 50),  # the groups of `largest` leave one over
        (5_003, 5_000, 64),
        (5_000, 4_900, 1),
        (700, 700, 700),  # no tail
        (700, 690, 690),  # the padding alone
        (16, 9, 8),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_values_equal_float64(width: int, vocab_size: int, k: int, scale: float) -> None:
    logits, tokens = make(width, scale, vocab_size)
    expected = reference(logits, tokens, k, vocab_size)
    ids, values = gather_rows(logits.clone(), tokens[:, 0], k=k, vocab_size=vocab_size)
    assert ids.dtype == torch.int32
    assert values.dtype == torch.float32
    assert values.shape == (ROWS, 1 + k + len(EXTRAS))
    torch.testing.assert_close(values.double(), expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(ids[:, :1].long(), tokens)
    assert (ids < vocab_size).all()
    # Each id has the logprob beside it, and no id comes twice.
    x = logits.double()
    x -= x.logsumexp(1, keepdim=True)
    torch.testing.assert_close(
        values[:, 1 : 1 + k].double(), x.gather(1, ids[:, 1:].long()), rtol=2e-6, atol=2e-6
    )
    ranked = ids[:, 1:].sort(1).values
    assert (ranked[:, 1:] > ranked[:, :-1]).all()


def test_entropy_and_tail_of_certain_rows_are_relatively_exact() -> None:
    """Not the difference of two large numbers, nor of 1 and a number close to it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 3000, generator=generator)
    tokens = torch.zeros(ROWS, dtype=torch.int64)
    logits[:, 7] += torch.linspace(15, 60, ROWS)
    expected = reference(logits, tokens[:, None], 1, 3000)
    _, values = gather_rows(logits.clone(), tokens, k=1, vocab_size=3000)
    torch.testing.assert_close(values[:, 2:4].double(), expected[:, 2:4], rtol=4e-6, atol=1e-14)


def test_rows_do_not_depend_on_their_company(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = make(5_003, 3.0, 5_000)
    whole = gather_rows(logits.clone(), tokens[:, 0], k=64, vocab_size=5_000, draws=20)
    monkeypatch.setitem(label_rows.CHUNK_BYTES, "cpu", 7 * 4 * 5_003)
    chunks = gather_rows(logits.clone(), tokens[:, 0], k=64, vocab_size=5_000, draws=20)
    alone = [
        gather_rows(logits[i : i + 1].clone(), tokens[i], k=64, vocab_size=5_000, draws=20)
        for i in range(ROWS)
    ]
    for part in (0, 1):
        assert torch.equal(whole[part], chunks[part])
        assert torch.equal(whole[part], torch.cat([rows[part] for rows in alone]))


def test_half_precision_logits_are_left_as_they_are() -> None:
    logits, tokens = make(5_003, 3.0, 5_000)
    half = logits.bfloat16()
    before = half.clone()
    ids, values = gather_rows(half, tokens[:, 0], k=64, vocab_size=5_000)
    assert torch.equal(half, before)
    expected = reference(half, tokens, 64, 5_000)
    torch.testing.assert_close(values.double(), expected, rtol=2e-6, atol=2e-6)
    kept = half.gather(1, ids[:, 1:].long())
    assert torch.equal(kept, half[:, :5_000].topk(64, 1).values)


def test_a_row_that_holds_no_number_is_no_number_and_the_others_are() -> None:
    logits, tokens = make(5_000, 1.0, 5_000)
    logits[3, 4_321] = torch.nan
    logits[5] = -torch.inf
    logits[7, 17] = torch.inf
    _, values = gather_rows(logits, tokens[:, 0], k=8, vocab_size=5_000)
    broken = torch.isnan(values).any(1).nonzero()[:, 0].tolist()
    assert broken == [3, 5, 7]


def test_draws_fit_their_distribution() -> None:
    logits, tokens = make(5_003, 3.0, 5_000)
    ids, values = gather_rows(logits, tokens[:, 0], k=64, vocab_size=5_000, draws=50)
    labels = labels_from_tensors(
        ids.numpy(), values.numpy(), tokens[:, 0].numpy(), k=64, vocab_size=5_000
    )
    usual = np.arange(ROWS) != 8  # there, the real ids' mass is below float32's smallest number
    assert not misfits(labels, 50, 1e-3)[usual].any()
    assert (ids[usual, 65:] < 5_000).all()


@pytest.mark.parametrize(
    ("width", "vocab_size", "k"), [(50_257, 50_257, 50), (5_003, 5_000, 64), (16, 9, 8), (9, 9, 9)]
)
def test_asked_ids_and_tails_at_temperatures_equal_float64(
    width: int, vocab_size: int, k: int
) -> None:
    logits, tokens = make(width, 3.0, vocab_size)
    generator = torch.Generator().manual_seed(0)
    asked = torch.stack([torch.randperm(vocab_size, generator=generator)[:6] for _ in logits])
    asked[:, :2] = logits[:, :vocab_size].topk(2, 1).indices  # among the top
    ranked = logits[:, :vocab_size].topk(min(k + 1, vocab_size), 1).indices
    asked[::2, 2] = ranked[::2, -1]  # the largest of the others
    for row in asked:  # unique, padded
        for place in range(len(row)):
            if row[place] in row[:place]:
                row[place] = -1
    asked[11] = -1
    ids, values = gather_rows(
        logits.clone(),
        tokens[:, 0],
        k=k,
        vocab_size=vocab_size,
        temperatures=(2.0, 0.5),
        asked=asked,
    )
    x = logits.double()
    kept = torch.zeros(ROWS, width, dtype=torch.bool)
    for row, found, wished in zip(kept, ids[:, 1:].tolist(), asked.tolist(), strict=True):
        stored = [i for i in found if i >= 0]
        assert len(set(stored)) == len(stored)
        assert set(stored) == {*found[:k], *(i for i in wished if i >= 0)}
        row[stored] = True
    real = ids[:, 1:] >= 0
    assert (real[:, 1:] <= real[:, :-1]).all()  # padding comes last
    logprobs = x.log_softmax(1)
    found = values[:, 1 : 1 + k + 6].double()
    of_ids = logprobs.gather(1, ids[:, 1:].long().clamp_min(0))
    torch.testing.assert_close(found[real], of_ids[real], rtol=2e-6, atol=2e-6)
    assert (found[~real] == -torch.inf).all()
    assert (found[:, 1:] <= found[:, :-1]).all()
    for column, temperature in ((-5, 1.0), (-2, 2.0), (-1, 0.5)):
        tail = (x / temperature).log_softmax(1).masked_fill(kept, -torch.inf).logsumexp(1)
        torch.testing.assert_close(values[:, column].double(), tail, rtol=2e-6, atol=2e-6)
    entropy = torch.special.entr(logprobs.exp()).sum(1)
    torch.testing.assert_close(values[:, -4].double(), entropy, rtol=2e-6, atol=2e-6)


def test_rows_without_asked_ids_are_those_without_the_argument() -> None:
    logits, tokens = make(5_003, 3.0, 5_000)
    plain = gather_rows(logits.clone(), tokens[:, 0], k=8, vocab_size=5_000, draws=5)
    nothing = torch.full((ROWS, 3), -1)
    ids, values = gather_rows(
        logits.clone(), tokens[:, 0], k=8, vocab_size=5_000, draws=5, asked=nothing
    )
    assert (ids[:, 9:12] == -1).all()
    assert torch.equal(ids[:, :9], plain[0][:, :9])
    usual = np.arange(ROWS) != 8  # there, the real ids' mass is below float32's smallest number
    labels = labels_from_tensors(
        ids.numpy(), values.numpy(), tokens[:, 0].numpy(), k=11, vocab_size=5_000
    )
    assert not misfits(labels, 5, 1e-3)[usual].any()
    torch.testing.assert_close(torch.cat([values[:, :9], values[:, 12:]], 1), plain[1])


@pytest.mark.parametrize("width", [1, 5, 256, 257, 4_095, 40_000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_largest_are_those_of_topk(width: int, k: int) -> None:
    k = min(k, width)
    values = torch.randn(6, width + 3, generator=torch.Generator().manual_seed(width))
    values[1] = values[1].round()
    values[2] = -torch.inf
    values[3] = values[3].sort().values
    values[4] = values[4].sort(descending=True).values
    values = values[:, 3:]  # rows with gaps between them, as those of a padded head
    ids = largest(values, k)
    assert torch.equal(values.gather(1, ids), values.topk(k, 1).values)
    assert (ids.sort(1).values.diff(dim=1) > 0).all()
