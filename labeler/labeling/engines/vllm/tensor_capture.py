"""Labels out of vLLM as tensors: installed at start-up, believed after a self-test, or not used.

vLLM's front end turns every logprob into Python numbers. Here it keeps the tensors instead, and the
workers (`vllm_worker`) fill them with exactly what a label set stores. Both sides reach into vLLM's
internals, so a probe is labeled through the public interface first and through ours then; only if
the two agree to the bit is ours used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labeler.labeling.engines.capture import TAIL_FLOOR
from labeler.labeling.engines.engine import EngineOutOfMemory
from schemas import Labels
from schemas.draws import misfits
from schemas.errors import first_line

TAIL_TOLERANCE = 1e-4
"""Largest difference of the exact tail's mass from 1 - sum: what float32 sums can be off."""


DRAW_SLACK = 1e-3
"""Relative error of probabilities that drawn counts are judged by."""


class TensorRows(list[tuple[Any, Any]]):
    """Parts (ids, values) of a request's label rows, where vLLM would hold its lists."""

    def joined(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """ids [n, 1 + k] and values [n, 1 + k + extras] of all parts, in order."""
        ids, values = ([_as_numpy(part[i]) for part in self] for i in (0, 1))
        if len(ids) == 1:
            return ids[0], values[0]
        return np.concatenate(ids), np.concatenate(values)


@contextlib.contextmanager
def tensor_front_end() -> Iterator[None]:
    """Let vLLM's front end, in this process, keep tensors for as long as the context lasts."""
    from vllm.v1.engine import logprobs

    processor: Any = logprobs.LogprobsProcessor
    originals = {
        name: getattr(processor, name)
        for name in ("_update_prompt_logprobs", "_update_sample_logprobs")
    }

    def keep_prompt(self: Any, rows: Any) -> None:
        self.prompt_logprobs = TensorRows([(rows.logprob_token_ids, rows.logprobs)])

    def keep_sample(self: Any, rows: Any) -> None:
        if not isinstance(self.logprobs, TensorRows):
            self.logprobs = TensorRows()
        self.logprobs.append((rows.logprob_token_ids, rows.logprobs))

    processor._update_prompt_logprobs = keep_prompt
    processor._update_sample_logprobs = keep_sample
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(processor, name, method)


def install(
    call_workers: Callable[..., list[Any]],
    label_probe: Callable[[bool], list[Labels]],
    undo: contextlib.ExitStack,
    *,
    k: int,
    vocab_size: int,
    draws: int,
) -> str | None:
    """Install the tensor path if a probe's labels come out of it as out of the public interface.

    Args:
        call_workers: vLLM's `collective_rpc`.
        label_probe: labels of a few fixed sequences: called with False (through the public
            interface), then with True (as tensors).
        undo: is given what puts everything back.
        k: ids a position; vocab_size: number of real ids; draws: ids drawn a position.

    Raises:
        EngineOutOfMemory: memory ran out, whichever path is used.

    Returns:
        None, or the reason why the tensor path cannot be used; the engine is then to be closed.
    """
    public = label_probe(False)
    try:
        undo.callback(call_workers, "softshards_uninstall")
        if not any(call_workers("softshards_install", args=(k, vocab_size, draws))):
            raise AttributeError("no worker has a sampler")
        undo.enter_context(tensor_front_end())
        return difference(public, label_probe(True), draws)
    except EngineOutOfMemory:
        raise
    except Exception as error:  # another vLLM, built otherwise, may fail in any way
        return f"the self-test failed: {first_line(error)}"


def difference(public: list[Labels], tensors: list[Labels], draws: int = 0) -> str | None:
    """Why labels from tensors are not those of the public interface; None where they are.

    The public ones have no exact tail: it is compared as far as 1 - sum is good for.
    """
    for ours, theirs in zip(tensors, public, strict=True):
        if not np.array_equal(ours.topk_logprobs, theirs.topk_logprobs):
            return "top-k logprobs differ from the public interface's"
        if not np.array_equal(ours.token_logprob, theirs.token_logprob):
            return "logprobs of the actual tokens differ from the public interface's"
        ties = np.zeros(ours.topk_ids.shape, bool)  # ids of equal logprobs may come in any order
        same = ours.topk_logprobs[:, 1:] == ours.topk_logprobs[:, :-1]
        ties[:, 1:] |= same
        ties[:, :-1] |= same
        ties[:, -1] = True  # equal to the first one left out, perhaps
        if ((ours.topk_ids != theirs.topk_ids) & ~ties).any():
            return "top-k ids differ from the public interface's"
        masses = np.exp(ours.tail_logprob) - np.exp(theirs.tail_logprob)
        if not (np.abs(masses) <= TAIL_TOLERANCE + TAIL_FLOOR).all():
            return "the exact tail does not fit the top-k"
        if ours.entropy is None or not (ours.entropy >= -1e-5).all():
            return "entropies are missing or negative"
        if draws and misfits(ours, draws, DRAW_SLACK).any():
            return "the drawn ids do not fit the top-k"
    return None


def probe_tokens(vocab_size: int, length: int) -> list[int]:
    """A fixed sequence of `length` token ids, spread over the vocabulary."""
    return (np.random.default_rng(0).integers(0, vocab_size, length)).tolist()


def _as_numpy(tensor: Any) -> NDArray[Any]:
    return tensor.numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)
