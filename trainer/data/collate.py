"""Turn a pack into tensors: documents that cannot see each other, and their labels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.labeled_spans import positions
from trainer.data.dataset import Pack

Attention = Literal["mask", "additive", "documents", "positions", "layer_masks", "varlen", "padded"]
"""Ways to keep documents apart.

mask: an explicit block-diagonal causal mask [1, 1, T, T], for SDPA.
additive: the same mask as numbers to add to the scores, for eager attention.
documents: one document at a time, by `trainer.student.document_attention`; the fastest on a CPU.
positions: transformers derives the mask from position ids that restart; needed where some layers
    have a sliding window, which one explicit mask could not express.
layer_masks: the same masks, made by `trainer.student.attention_ways` for architectures that do not
    derive them.
varlen: cu_seqlens for flash attention.
padded: one document per row, padded at its end, for models that cannot be packed. There is no mask:
    what comes after a document changes nothing in a causal model.
"""


class ModelInputs(TypedDict):
    """Keyword arguments of a transformers decoder."""

    input_ids: Tensor
    use_cache: bool
    position_ids: NotRequired[Tensor]
    attention_mask: NotRequired[Tensor | None]
    cu_seq_lens_q: NotRequired[Tensor]
    cu_seq_lens_k: NotRequired[Tensor]
    max_length_q: NotRequired[int]
    max_length_k: NotRequired[int]
    document_lengths: NotRequired[list[int]]


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """T tokens of consecutive documents that cannot see each other. Integers are int64.

    Padded, each document is a row of its own: [documents, longest] instead of [1, T].

    Attributes:
        input_ids: [1, T].
        position_ids: [1, T]; positions restart with every document.
        real: bool [documents, longest], False at padding; None if packed.
        attention_mask: bool [1, 1, T, T], True where a query (third axis) sees a key; float32 with
            0 and the lowest number instead ("additive"); or None.
        cu_seqlens: int32 [documents + 1], or None.
        max_length: tokens of the longest document.
        document_lengths: tokens of each document, or None.
    """

    input_ids: Tensor
    position_ids: Tensor
    real: Tensor | None
    attention_mask: Tensor | None
    cu_seqlens: Tensor | None
    max_length: int
    document_lengths: list[int] | None

    @property
    def model_inputs(self) -> ModelInputs:
        """Keyword arguments for a transformers decoder."""
        inputs: ModelInputs = {"input_ids": self.input_ids, "use_cache": False}
        if self.real is not None:
            return inputs
        inputs["position_ids"] = self.position_ids
        inputs["attention_mask"] = self.attention_mask
        if self.cu_seqlens is not None:
            inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_k"] = self.cu_seqlens
            inputs["max_length_q"] = inputs["max_length_k"] = self.max_length
        if self.document_lengths is not None:
            inputs["document_lengths"] = self.document_lengths
        return inputs


@dataclass(frozen=True, kw_only=True)
class Batch(PackedTokens):
    """Packed tokens and n labels. Integers are int64, logprobs float32.

    Attributes:
        rows: [n], index of the hidden state that predicts label j, the one *before* its token, in
            all of the batch.
        targets: [n], the actual token at label j.
        topk_ids: [n, k], the teacher's, unique within a row, padded with -1.
        topk_logprobs: [n, k], padded with -inf.
        tail_logprob: [n]; together with topk_logprobs it sums to one, renormalized after storage.
        token_logprob: [n], the teacher's log p of the actual token, as stored.
        drawn_ids: [n, m], ids drawn from the teacher's distribution, unique within a row, padded
            with -1; or None, where they were not read.
        drawn_counts: [n, m], times each id was drawn, padded with 0; or None.
        kinds: [n], index into `schemas.arrow.SPAN_KINDS`.
        documents: [n], number of the pack's row that a label belongs to.
        sources: input file of each row.
        label_weights: [n], 1 / the probability that a label was kept; or None, where all were.
        tempered_tail: [n], the teacher's tail at another temperature than 1; or None, where it was
            not read.
        states: [n, layers, d_t], the teacher's hidden states, or None, where they were not read: as
            stored, until `TeacherStates` makes them float32.
        sets: [n], the label set of a mixture that each state is of; None without states.
    """

    rows: Tensor
    targets: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    tail_logprob: Tensor
    token_logprob: Tensor
    drawn_ids: Tensor | None
    drawn_counts: Tensor | None
    kinds: Tensor
    documents: Tensor
    sources: list[str]
    label_weights: Tensor | None = None
    tempered_tail: Tensor | None = None
    states: Tensor | None = None
    sets: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device. A GPU copies while it computes; nothing waits for it."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            moved[f.name] = _move(value, device) if isinstance(value, Tensor) else value
        return Batch(**moved)


def collate(pack: Pack, *, attention: Attention = "mask", pad_to: int | None = None) -> Batch:
    """Lay the rows of a pack end to end, or pad them.

    Args:
        pack: an item of `LabelDataset`, of a padded one if `attention` is "padded".
        attention: the way to keep documents apart.
        pad_to: pad to this many tokens with one more document without labels (for torch.compile,
            which needs one shape).
    """
    window, rows = pack.window, pack.rows
    lengths = window.token_offsets[rows + 1] - window.token_offsets[rows]
    tokens = window.tokens[positions(window.token_offsets[rows], window.token_offsets[rows + 1])]
    n_labels = window.label_offsets[rows + 1] - window.label_offsets[rows]
    picked = positions(window.label_offsets[rows], window.label_offsets[rows + 1])
    in_row = window.positions[picked]
    targets = tokens[in_row + np.repeat(np.cumsum(lengths) - lengths, n_labels)]
    before = in_row - 1 + np.repeat(document_starts(lengths, attention), n_labels)
    labels = window.labels[picked]
    if pad_to is not None and pad_to > len(tokens):
        lengths = np.append(lengths, pad_to - len(tokens))
        tokens = np.concatenate([tokens, np.zeros(pad_to - len(tokens), tokens.dtype)])
    documents = np.repeat(np.arange(len(rows)), n_labels)
    return Batch(
        **vars(lay_out(tokens, lengths, attention)),
        rows=_long(before),
        targets=_long(targets),
        topk_ids=_long(labels.topk_ids),
        topk_logprobs=torch.from_numpy(labels.topk_logprobs),
        tail_logprob=torch.from_numpy(labels.tail_logprob),
        token_logprob=torch.from_numpy(labels.token_logprob),
        drawn_ids=None if labels.sample_ids is None else _long(labels.sample_ids),
        drawn_counts=None if labels.sample_counts is None else _long(labels.sample_counts),
        kinds=_long(window.kinds[picked]),
        documents=_long(documents),
        sources=[window.sources[row] for row in rows],
        label_weights=(
            None if labels.label_weights is None else torch.from_numpy(labels.label_weights)
        ),
        tempered_tail=(
            None
            if labels.tempered_tails is None
            else torch.from_numpy(labels.tempered_tails[:, 0].copy())
        ),
        states=None if labels.states is None else torch.from_numpy(labels.states),
        sets=None if labels.states is None else _long(np.repeat(window.sets[rows], n_labels)),
    )


def document_starts(lengths: NDArray[np.int64], attention: Attention) -> NDArray[np.int64]:
    """Return the index of each document's first token in a batch of `lay_out`, flattened."""
    if attention == "padded":
        return np.arange(len(lengths), dtype=np.int64) * int(lengths.max())
    return np.cumsum(lengths) - lengths


def lay_out(
    tokens: NDArray[np.int32], lengths: NDArray[np.int64], attention: Attention
) -> PackedTokens:
    """Return documents, given end to end, as inputs of a model."""
    if attention == "padded":
        return _pad(tokens, lengths)
    in_document = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    mask = block_causal_mask(lengths) if attention in ("mask", "additive") else None
    if mask is not None and attention == "additive":
        lowest = torch.finfo(torch.float32).min  # as in transformers: -inf would make NaN
        mask = torch.zeros(mask.shape).masked_fill_(~mask, lowest)
    return PackedTokens(
        input_ids=_long(tokens)[None],
        position_ids=_long(in_document)[None],
        real=None,
        attention_mask=mask,
        cu_seqlens=_cu_seqlens(lengths) if attention == "varlen" else None,
        max_length=int(lengths.max()),
        document_lengths=lengths.tolist() if attention == "documents" else None,
    )


def _pad(tokens: NDArray[np.int32], lengths: NDArray[np.int64]) -> PackedTokens:
    at = np.arange(lengths.max())
    real = at < lengths[:, None]
    ids = np.zeros(real.shape, tokens.dtype)
    ids[real] = tokens
    return PackedTokens(
        input_ids=_long(ids),
        position_ids=_long(at).repeat(len(lengths), 1),
        real=torch.from_numpy(real),
        attention_mask=None,
        cu_seqlens=None,
        max_length=len(at),
        document_lengths=None,
    )


def block_causal_mask(lengths: NDArray[np.int64]) -> Tensor:
    """Return bool [1, 1, T, T]: token q sees token k of the same document if k <= q."""
    document = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    same = document[:, None] == document[None, :]
    return same.tril_()[None, None]


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # From pageable memory, the copy would first wait for everything that the GPU has yet to do.
    return tensor.pin_memory().to(device, non_blocking=True)


def _cu_seqlens(lengths: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _long(array: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
