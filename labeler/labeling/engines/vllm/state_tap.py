"""Hidden states inside vLLM's workers: what the head reads, and what decoder layers return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labeler.labeling.engines.decoder_layers import decoder_layers, inner_layers
from labeler.labeling.engines.fit_states import OutputHead
from schemas.errors import SoftshardsError
from schemas.file_names import FINAL

SAME_DIRECTION = 0.999
"""Cosine of two states that are equal up to a factor and the rounding of a norm in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class HeadShard:
    """The rows of the output projection that one tensor-parallel rank holds, on the host.

    Attributes:
        start: the id of the first row.
        weight: [ids, d]; padding of the shard is cut off.
        bias: [ids], or None.
        scale, softcap: as in `fit_states.OutputHead`.
    """

    start: int
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


@dataclass(frozen=True)
class _HeadCall:
    """A call of vLLM's logits processor."""

    processor: Any
    head: Any
    states: Tensor
    bias: Tensor | None


class StateTap:
    """Keeps the states of the step that a worker runs, until the next one.

    Layers of vLLM return the residual stream whole, or as two parts to be added. The first rows
    that are asked for, those of the self-test, show which: the final norm of the last layer's
    stream must be what the head reads.

    Args:
        model: the worker's.
        names: the states to keep, in the order of a row.
        layers: number of decoder layers of the model.

    Raises:
        AttributeError: the model has no logits processor.
        SoftshardsError: it has no such layers, or not on this worker.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], layers: int) -> None:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        self._names = tuple(names)
        self._call: _HeadCall | None = None
        self._streams: dict[int, list[Tensor]] = {}
        self._summed: bool | None = None
        processors = [m for m in model.modules() if isinstance(m, LogitsProcessor)]
        if not processors:
            raise AttributeError("the model has no logits processor")
        arguments = inspect.signature(LogitsProcessor.forward)

        def keep_call(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = arguments.bind(module, *args, **kwargs).arguments
            self._call = _HeadCall(
                module, given["lm_head"], given["hidden_states"], given.get("embedding_bias")
            )

        self._hooks = [p.register_forward_pre_hook(keep_call, with_kwargs=True) for p in processors]
        self._inner = inner_layers(names)
        self._last = layers - 1
        if self._inner:
            owner, blocks = decoder_layers(model, layers)
            self._norms = [m for m in owner.children() if "norm" in type(m).__name__.lower()]
            for number in {*self._inner.values(), self._last}:
                if type(blocks[number]).__name__ == "PPMissingLayer":
                    raise SoftshardsError(f"layer {number} runs on an earlier pipeline stage")
                self._hooks.append(blocks[number].register_forward_hook(self._keeper(number)))

    def rows(self, where: Tensor) -> Tensor:
        """Return states of the tokens whose logits were computed last, [n, names * d].

        Args:
            where: [n], their places in the step.

        Raises:
            ValueError: the head has read other rows, or a state is not what it should be.
        """
        assert self._call is not None, "vLLM computes logits in every step"
        final = self._call.states
        if final.shape[:1] != where.shape:
            raise ValueError(f"the head has read {len(final)} rows, expected {len(where)}")
        if self._inner and self._summed is None:
            self._summed = self._is_summed(final, where)
        parts = [
            final if name == FINAL else self._stream(self._inner[name])[where]
            for name in self._names
        ]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError("what the head reads and what layers return differ in width")
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def empty(self, rows: int) -> Tensor:
        """Return host memory for so many rows, as `to_wire` makes them."""
        assert self._call is not None, "vLLM computes logits in every step"
        like = self._call.states
        return to_wire(torch.zeros(rows, len(self._names) * like.shape[1], dtype=like.dtype))

    def head(self) -> HeadShard | str:
        """Return this worker's rows of the head that was called last, or why there are none."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        call = self._call
        if call is None or call.processor.logits_as_input:
            return "the teacher's head is not a product with a matrix"
        plain = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
        if not isinstance(getattr(call.head, "quant_method", None), plain):
            return "the teacher's head is quantized, or has an adapter"
        processor, shard = call.processor, call.head.shard_indices
        rows = slice(0, shard.num_org_elements)
        scale, cap = float(processor.scale), processor.soft_cap
        return HeadShard(
            start=shard.org_vocab_start_index,
            weight=call.head.weight.detach()[rows].cpu(),
            bias=None if call.bias is None else call.bias.detach()[rows].cpu(),
            scale=scale,
            # vLLM scales after it has capped: the cap is scaled, too.
            softcap=None if cap is None else float(cap) * scale,
        )

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._streams.clear()
        self._call = None

    def _keeper(self, number: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            parts = [output] if isinstance(output, Tensor) else list(output)
            # Models that vLLM runs through transformers have a batch of one.
            flat = [part.flatten(0, -2) if isinstance(part, Tensor) else None for part in parts]
            hidden, residual = flat[0], flat[1] if len(flat) > 1 else None
            assert hidden is not None, "a layer returns its stream first"
            # Copies: the next layer adds in place.
            whole = hidden.clone() if self._summed is not True else None
            summed = None
            if self._summed is not False and isinstance(residual, Tensor):
                summed = hidden + residual
            self._streams[number] = [t for t in (summed, whole) if t is not None]

        return keep

    def _stream(self, number: int) -> Tensor:
        return self._streams[number][0 if self._summed else -1]

    def _is_summed(self, final: Tensor, where: Tensor) -> bool:
        """Return whether the parts that a layer returns are to be added.

        Raises:
            ValueError: neither way leads to what the head reads.
        """
        candidates = self._streams[self._last]
        for summed, stream in zip((True, False)[-len(candidates) :], candidates, strict=True):
            for norm in self._norms:
                found = norm(stream[where].contiguous())
                found = found if isinstance(found, Tensor) else found[0]
                cosines = nn.functional.cosine_similarity(found.float(), final.float(), dim=1)
                if (cosines > SAME_DIRECTION).all():
                    return summed
        raise ValueError("the final norm of the last layer's output is not what the head reads")


def export_head(parts: Sequence[HeadShard | str | None]) -> OutputHead:
    """Return the head whose rows the workers hold, in the order of the vocabulary.

    Args:
        parts: what `StateTap.head` returned on each worker; None where there is no head.

    Raises:
        SoftshardsError: a worker cannot export its part.
    """
    for reason in parts:
        if isinstance(reason, str):
            raise SoftshardsError(reason)
    # A head that is not split is whole on every rank.
    by_start = {part.start: part for part in parts if isinstance(part, HeadShard)}
    shards = [by_start[start] for start in sorted(by_start)]
    if not shards:
        raise SoftshardsError("no worker has a head")
    biases = [shard.bias for shard in shards if shard.bias is not None]
    return OutputHead(
        weight=torch.cat([shard.weight for shard in shards]),
        bias=torch.cat(biases) if biases else None,
        scale=shards[0].scale,
        softcap=shards[0].softcap,
    )


def to_wire(states: Tensor) -> Tensor:
    """Return states as NumPy knows them: bits of bfloat16 travel as int16."""
    return states.view(torch.int16) if states.dtype == torch.bfloat16 else states
