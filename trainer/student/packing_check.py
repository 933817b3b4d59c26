"""Check at load that documents in a batch get the values of each alone, and of the plain model.

The plain model is the student with eager attention, run on one document without any of the
arguments that training passes. Compared are the log-probabilities at the labels and the gradient
of their sum with respect to the embedded tokens, which passes through every layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError, first_line
from trainer.data.collate import Attention, PackedTokens, document_starts, lay_out
from trainer.student.attention_ways import (
    AttentionWay,
    Packing,
    leaking_layers,
    packed_ways,
    padded_ways,
    set_attention,
)
from trainer.student.layers import decoder_layers, keep_layers
from trainer.student.student_output import StudentOutput

LENGTHS = (21, 27)
"""Tokens of the documents."""

TOLERANCE = 1e-3
"""Largest difference of a log-probability, and of the gradient relative to its norm."""

FAILS = "it fails with"
SEE_EACH_OTHER = "packed documents see each other"

WHOLE_PARAMETERS = 100_000_000
"""Larger students are checked on their first layers, one of each kind at least."""


class PackedStudent(Protocol):
    """The parts of a `Student` that the check runs."""

    model: PreTrainedModel
    attention: Attention
    valid_vocab: int

    def states(self, packed: PackedTokens) -> Tensor:
        """Return the final hidden states [tokens, d]."""
        ...

    def label_logprobs(self, hidden: Tensor, ids: Tensor, target: Tensor) -> StudentOutput:
        """Return log-probabilities from hidden states."""
        ...


class _Values(NamedTuple):
    logprobs: Tensor  # [labels]
    gradient: Tensor  # [T, width]


def settle_attention(student: PackedStudent, packing: Packing = "auto") -> list[str]:
    """Set the student to the fastest way to keep documents apart that passes the check.

    Returns:
        What differs from the usual way, a line each.

    Raises:
        SoftshardsError: no way that `packing` allows gives the values of the plain model.
    """
    if student.attention == "varlen" and packing != "off":
        return []  # flash attention runs neither on the CPU nor in float32
    name = type(student.model).__name__
    reason: str | None = ""
    if packing != "off":
        if kinds := leaking_layers(student.model):
            reason = f"its {', '.join(kinds)} layers would leak from one document into the next"
        else:
            reason = _take_first(student, packed_ways(student.model))
        if reason is None:
            return _notes_on_attention(student)
        if packing == "on":
            raise SoftshardsError(
                f"the student, a {name}, cannot be packed: {reason}",
                hint="--packing auto pads its documents instead",
            )
    if fault := _take_first(student, padded_ways(student.model)):
        raise SoftshardsError(
            f"the student, a {name}, can be neither packed nor padded: {reason or fault}"
            + (f"; padded, {fault}" if reason and reason != fault else ""),
            hint="use a student of an architecture in docs/students.md",
        )
    notes = [f"documents are padded, not packed: {reason}"] if reason else []
    return notes + _notes_on_attention(student)


def _take_first(student: PackedStudent, ways: list[AttentionWay]) -> str | None:
    """Set the student to the first way that passes the check, or return the fault of the first."""
    own = student.model.config._attn_implementation
    faults: list[str] = [] if ways else ["its layers would choose among the padding, too"]
    for way in ways:
        fault = find_fault(student, way)
        if fault is None:
            student.attention = way.attention
            if way.implementation != own:
                set_attention(student.model, way.implementation)
            return None
        faults.append(fault)
    return next((fault for fault in faults if not fault.startswith(FAILS)), faults[0])


def _notes_on_attention(student: PackedStudent) -> list[str]:
    if student.model.config._attn_implementation != "eager" or leaking_layers(student.model):
        return []
    length = "row" if student.attention == "padded" else "pack"
    return [
        "attention is transformers' eager one, the only one that gives this student's values: its "
        f"memory grows with the square of the {length}"
    ]


def find_fault(student: PackedStudent, way: AttentionWay) -> str | None:
    """Return how a way to keep documents apart goes wrong in a student, or None if it does not."""
    try:
        tried, plain = part_of(student, way.implementation), part_of(student, "eager")
        tried.attention = way.attention
        tokens = ((1 + np.arange(sum(LENGTHS)) * 7919) % student.valid_vocab).astype(np.int32)
        documents = np.split(tokens, np.cumsum(LENGTHS)[:-1])
        packed = _values(tried, [(tokens, LENGTHS)])
        alone = _values(tried, [(t, (len(t),)) for t in documents])
        expected = _values(plain, [(t, None) for t in documents])
    except Exception as error:  # code of any architecture
        reason = first_line(error)
        return f"{FAILS} {type(error).__name__}: {reason}"
    if difference := _difference(packed, alone):
        kind = "padding changes a document" if way.attention == "padded" else SEE_EACH_OTHER
        return f"{kind} ({difference})"
    if difference := _difference(alone, expected):
        return f"{way.implementation} attention is not its own, eager attention ({difference})"
    return None


def part_of(student: PackedStudent, implementation: str) -> PackedStudent:
    """Return a student that shares the weights, without most layers of a large model.

    Args:
        student: is not changed.
        implementation: the attention of transformers that the other runs with.
    """
    part = _copy(student, implementation)
    if sum(tensor.numel() for tensor in part.model.parameters()) <= WHOLE_PARAMETERS:
        return part
    try:
        layers = list(decoder_layers(part.model))
        kinds = list(zip(_layer_types(part.model, len(layers)), map(_shape_of, layers)))
        keep_layers(part.model, range(max(2, *(kinds.index(kind) + 1 for kind in kinds))))
        with torch.no_grad():
            part.model(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False)
    except Exception:  # code of any architecture, which may not run without its other layers
        return _copy(student, implementation)
    return part


def _copy(student: PackedStudent, implementation: str) -> PackedStudent:
    """Return a student of its own modules around the same weights."""
    weights = {id(tensor): tensor for tensor in student.model.parameters()}
    other = copy.deepcopy(student, weights)
    other.model.eval()
    set_attention(other.model, implementation)
    return other


def _layer_types(model: PreTrainedModel, count: int) -> list[str]:
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return types if types and len(types) == count else [""] * count


def _shape_of(layer: nn.Module) -> tuple[str, ...]:
    return tuple(type(module).__name__ for module in layer.modules())


def _values(
    student: PackedStudent, inputs: list[tuple[NDArray[np.int32], tuple[int, ...] | None]]
) -> _Values:
    """Run the student on tokens and the lengths of their documents, or without lengths plainly."""
    embedded: list[Tensor] = []
    logprobs, gradients = [], []

    def note(_: object, __: object, output: Tensor) -> Tensor:
        embedded.append(output if output.requires_grad else output.requires_grad_())
        return output

    with _hooked(student.model.get_input_embeddings(), note):
        for tokens, lengths in inputs:
            ids = torch.from_numpy(tokens).long()
            embedded.clear()
            places = None
            if lengths is None:
                logits = student.model(input_ids=ids[None], use_cache=False).logits[0]
                logp = logits[:-1, : student.valid_vocab].float().log_softmax(-1)
                found = logp.gather(1, ids[1:, None])[:, 0]
            else:
                sizes = np.array(lengths)
                states = student.states(lay_out(tokens, sizes, student.attention))
                starts = document_starts(sizes, student.attention)
                places = np.concatenate([s + np.arange(n) for s, n in zip(starts, lengths)])
                is_last = np.isin(np.arange(len(ids)), np.cumsum(sizes) - 1)
                labels = ids.roll(-1)[~torch.from_numpy(is_last)]
                found = student.label_logprobs(
                    states[places[~is_last]], labels[:, None], labels
                ).target_logp
            gradient = torch.autograd.grad(found.sum(), embedded[0])[0].flatten(0, 1)
            if places is not None and len(gradient) == len(states):
                gradient = gradient[places]
            logprobs.append(found.detach())
            gradients.append(gradient)
    return _Values(torch.cat(logprobs), torch.cat(gradients))


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _difference(found: _Values, expected: _Values) -> str:
    """Return the difference in words, empty if it is within the tolerance."""
    if found.gradient.shape != expected.gradient.shape:
        return f"{len(found.gradient)} embedded tokens for {len(expected.gradient)}"
    values = float((found.logprobs - expected.logprobs).abs().max())
    gradient = float((found.gradient - expected.gradient).norm() / expected.gradient.norm())
    if values < TOLERANCE and gradient < TOLERANCE:  # NaN is a difference
        return ""
    return f"log-probabilities differ by {values:.2g} nats, gradients by {gradient:.2g} of the norm"
