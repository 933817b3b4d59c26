"""vLLM's front end, changed to keep tensors instead of turning every logprob into Python numbers.

The workers (`worker`) fill the tensors with the values that a label set stores. Both rely on vLLM's
internals, so `vllm_self_test` checks the labels before this path is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class TensorRows(list[tuple[Any, Any, Any]]):
    """Parts (ids, values, states) of a request's label rows, where vLLM would hold its lists."""

    def joined(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[Any]]:
        """Return the arrays of all parts, in order.

        Returns:
            ids [n, 1 + k + draws], values [n, 1 + k + extras], and states [n, names * d], bfloat16
            as int16, or [n] where there are none.
        """
        ids, values, states = ([_as_numpy(part[i]) for part in self] for i in range(3))
        if len(ids) == 1:
            return ids[0], values[0], states[0]
        return np.concatenate(ids), np.concatenate(values), np.concatenate(states)


@contextlib.contextmanager
def tensor_front_end() -> Iterator[None]:
    """Make vLLM's front end, in this process, keep tensors while the context lasts."""
    from vllm.v1.engine import logprobs

    processor: Any = logprobs.LogprobsProcessor
    originals = {
        name: getattr(processor, name)
        for name in ("_update_prompt_logprobs", "_update_sample_logprobs")
    }

    def keep_prompt(self: Any, rows: Any) -> None:
        kept = (rows.logprob_token_ids, rows.logprobs, rows.selected_token_ranks)
        self.prompt_logprobs = TensorRows([kept])

    def keep_sample(self: Any, rows: Any) -> None:
        if not isinstance(self.logprobs, TensorRows):
            self.logprobs = TensorRows()
        kept = (rows.logprob_token_ids, rows.logprobs, rows.sampled_token_ranks)
        self.logprobs.append(kept)

    processor._update_prompt_logprobs = keep_prompt
    processor._update_sample_logprobs = keep_sample
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(processor, name, method)


def _as_numpy(tensor: Any) -> NDArray[Any]:
    return tensor.numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)
